"""Array fields of one dimension without NULLs, also if raw SQL wrote other values."""

from collections.abc import Iterator
from typing import Any

from django.contrib.postgres.fields import ArrayField


class PlainArrayField(ArrayField[Any, Any]):
    """Reads an array of arrays, which Postgres takes for any array column, as one array."""

    def from_db_value(self, value: Any, *_: Any) -> list[Any] | None:
        return None if value is None else list(_flat(value))

    def deconstruct(self) -> Any:
        """Return an ArrayField for migrations."""
        name, _, args, kwargs = super().deconstruct()
        return name, "django.contrib.postgres.fields.ArrayField", args, kwargs


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        elif value is not None:
            yield value
