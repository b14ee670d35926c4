"""Which turn each run of a task with a rate limit gets."""

from scheduling.workers.rate_limits import AHEAD, EARLY, FARTHEST, Turns


def test_each_that_must_wait_gets_a_turn_of_its_own_and_finds_it_when_it_comes_back() -> None:
    turns = Turns()
    assert [turns.take("t", 10, 0) for _ in range(4)] == [
        (0, True), (10, False), (20, False), (30, False),
    ]  # fmt: skip
    assert turns.take("t", 10, 10 - EARLY) == (EARLY, True)
    assert turns.take("t", 10, 20 - EARLY) == (EARLY, True)
    assert turns.take("t", 10, 30 - EARLY) == (EARLY, True)
    assert turns.take("t", 10, 31) == (9, False)


def test_a_limit_of_one_task_is_not_another_tasks() -> None:
    turns = Turns()
    assert turns.take("t", 10, 0) == turns.take("u", 10, 0) == (0, True)


def test_many_a_second_are_kept_for_a_second_at_most() -> None:
    turns = Turns()
    taken = [turns.take("t", 0.01, 0) for _ in range(500)]
    assert sum(here for _, here in taken) - round(AHEAD / 0.01) in (0, 1)
    assert [round(seconds, 6) for seconds, _ in taken] == [n / 100 for n in range(500)]


def test_turns_of_runs_that_never_came_back_keep_no_later_one_waiting() -> None:
    turns = Turns()
    for _ in range(20):
        turns.take("t", 10, 0)
    assert turns.take("t", 10, 25) == (0, True)
    assert turns.take("t", 10, 25) == (10, False)


def test_none_is_put_off_for_ever() -> None:
    turns = Turns()
    assert max(turns.take("t", 10, 0)[0] for _ in range(1000)) == FARTHEST * 10
