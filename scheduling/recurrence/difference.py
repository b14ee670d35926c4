"""The occurrences that change when one rule replaces another: added, removed and kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from .rule import Rule

# Together, of both rules: a month of minutes twice, and not much more than half a second.
MOST_COMPARED = 100_000


@dataclass(frozen=True, slots=True)
class Difference:
    """How many occurrences are added, removed and kept, up to an instant.

    `moved` is the first occurrence that moves: its old instant and its new one, either of them None
    after the last occurrence of that rule. `moved` is None if no occurrence changes. `complete` is
    False if there were too many to compare: the counts then end at `until`.
    """

    added: int
    removed: int
    kept: int
    moved: tuple[datetime | None, datetime | None] | None
    until: datetime
    complete: bool = True


def difference(old: Rule | None, new: Rule | None, a: datetime, b: datetime) -> Difference:
    """Compare the occurrences of two rules with a < t <= b; None is a rule without any."""
    olds, news = _between(old, a, b), _between(new, a, b)
    was, will = next(olds, None), next(news, None)
    added = removed = kept = 0
    moved = None
    while was is not None or will is not None:
        if added + removed + 2 * kept >= MOST_COMPARED:
            until = min(instant for instant in (was, will) if instant is not None)
            return Difference(added, removed, kept, moved, until, complete=False)
        if was == will:
            kept += 1
            was, will = next(olds, None), next(news, None)
            continue
        moved = moved or (was, will)
        if will is None or (was is not None and was < will):
            removed += 1
            was = next(olds, None)
        else:
            added += 1
            will = next(news, None)
    return Difference(added, removed, kept, moved, b)


def _between(rule: Rule | None, a: datetime, b: datetime) -> Iterator[datetime]:
    return iter(()) if rule is None else rule.occurrences_between(a, b)
