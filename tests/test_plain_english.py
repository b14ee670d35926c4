"""Prose says its subject: no phrase of `tests/plain_english.py` stands in a tracked file."""

from tests.plain_english import findings


def test_no_file_has_a_phrase_that_readers_must_decode() -> None:
    found = [str(finding) for finding in findings()]
    assert not found, "\n".join(found)
