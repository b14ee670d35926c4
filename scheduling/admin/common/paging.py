"""Pages of large tables: the count of rows stops at a limit."""

from typing import Any

from django.core.paginator import Paginator
from django.utils.functional import cached_property

# Postgres reads all rows before a page, so later pages cost more.
BOUND = 5_000


class MoreThan(int):
    """A count that stopped at a bound: a number that reads "more than 5,000"."""

    def __str__(self) -> str:
        return f"more than {int(self):,}"


class BoundedPaginator(Paginator[Any]):
    """Counts, and pages through, the first BOUND rows; filters find the others."""

    object_list: Any

    @cached_property
    def count(self) -> int:
        count: int = self.object_list.order_by()[: BOUND + 1].count()
        return MoreThan(BOUND) if count > BOUND else count
