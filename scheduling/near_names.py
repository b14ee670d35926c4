"""The names that a mistyped name may stand for."""

import difflib
from collections.abc import Iterable


def near_names(name: str, names: Iterable[str], n: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return up to `n` names that look like `name`, the most similar first."""
    return difflib.get_close_matches(name, list(names), n=n, cutoff=cutoff)


def did_you_mean(name: str, names: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """Return the end of a message about an unknown name: similar names, or else `otherwise`."""
    near = " or ".join(map(repr, near_names(name, names, cutoff=cutoff)))
    return f"did you mean {near}?" if near else otherwise
