"""The table of private names of Celery and kombu in docs/celery.md, held against the code."""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kombu.utils.imports import symbol_by_name

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "scheduling"
# Private by their underscore, but documented: named tuples, models, the standard library, proxies.
DOCUMENTED = {
    "_replace", "_asdict", "_make", "_fields", "_meta", "_default_manager", "_state", "_exit",
    "_get_current_object",
}  # fmt: skip
LIBRARIES = "celery|kombu|billiard|django_celery_results"


class Line(NamedTuple):
    """One line of the table."""

    owner: str
    names: list[str]
    modules: list[str]
    test: str
    test_file: str


def lines() -> Iterator[Line]:
    _, _, table = (ROOT / "docs" / "celery.md").read_text().partition("## Private names")
    for row in table.splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in row.split("|")]
        if len(cells) == 6 and cells[1]:
            yield Line(cells[1][0], cells[2], cells[3], *cells[4])


LINES = list(lines())


def private_attributes(path: Path) -> set[str]:
    """Return the private attributes that a module reads of other objects."""
    own = {"self", "cls"}
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and re.match("_[a-z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in own)
    }


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.owner)
def test_a_private_name_is_still_there(line: Line) -> None:
    owner: Any = symbol_by_name(line.owner)
    text = inspect.getsource(owner)
    for name in line.names:
        assert hasattr(owner, name) or re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.owner)
def test_its_module_and_its_test_are_there(line: Line) -> None:
    assert f"def {line.test}(" in (ROOT / line.test_file).read_text()
    for name in line.names:
        for module in line.modules:
            assert re.search(rf"\b{name}\b", (SOURCES / module).read_text()), (name, module)


def test_no_other_module_uses_a_private_name_of_celery() -> None:
    allowed = defaultdict[str, set[str]](set)
    for line in LINES:
        for module in line.modules:
            allowed[module].update(line.names)
    found = []
    for path in SOURCES.rglob("*.py"):
        text, module = path.read_text(), str(path.relative_to(SOURCES))
        if "migrations" in path.parts or not re.search(rf"(import|from) ({LIBRARIES})", text):
            continue
        own = set(re.findall(r"(?:def|self\.|class) ?(_[a-z]\w+)", text)) | set(
            re.findall(r"^ *(_[a-z]\w+)\s*[:=]", text, re.MULTILINE)
        )
        strange = private_attributes(path) - DOCUMENTED - allowed[module] - own
        found += [f"{module}: {name}" for name in sorted(strange)]
    assert found == []
