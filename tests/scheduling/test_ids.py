import threading
import time
from typing import Any
from uuid import RFC_4122, UUID

from scheduling.ids import uuid7, uuid7_texts
from tests.jobs.tasks import add


def test_an_id_is_a_uuid_of_version_7() -> None:
    made = uuid7()
    assert (made.version, made.variant) == (7, RFC_4122)


def test_ids_of_one_process_are_strictly_increasing() -> None:
    ids = [uuid7() for _ in range(20_000)]
    assert ids == sorted(set(ids))
    assert [str(made) for made in ids] == sorted(str(made) for made in ids)


def test_an_id_begins_with_its_millisecond() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000
    assert before <= made.int >> 80 <= after + 1


def test_threads_make_different_ids() -> None:
    ids: list[UUID] = []
    threads = [
        threading.Thread(target=lambda: ids.extend(uuid7() for _ in range(2000))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 8000


def test_ids_made_many_at_once_are_such_ids_as_text() -> None:
    before = uuid7()
    texts = uuid7_texts(2000)
    ids = [UUID(text) for text in texts]
    assert [str(made) for made in ids] == texts
    assert {(made.version, made.variant) for made in ids} == {(7, RFC_4122)}
    assert ids == sorted(set(ids))
    assert before < ids[0]
    assert ids[-1] < uuid7()
    assert {text[19] for text in texts} == set("89ab")
    assert uuid7_texts(0) == []


def test_ids_that_celery_makes_sort_too() -> None:
    before, made = uuid7(), list[UUID]()
    first: Any = add.s(1, 2)
    part = (first | add.s(3) | add.s(4)).freeze()
    while part is not None:
        made.append(UUID(part.id))
        part = part.parent
    assert len(made) == 3
    assert all(one > before and one.version == 7 for one in made)
