"""Holds the documents against the code: names in documents exist, and events are documented."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple, is_typeddict
from uuid import UUID

import pytest
from celery.bin.celery import celery
from celery.worker.control import Panel
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand
from django.db import connection

from scheduling import shapes
from scheduling.models import FINAL, CatchUp, ManagedBy, Origin, Overlap, Policy, State
from tests import module_map

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OPERATIONS = (ROOT / "docs/operations.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
SHAPES = (ROOT / "docs/shapes.md").read_text()

ENGINE = ROOT / "scheduling"
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SOURCES = [
    path
    for app in ("scheduling", "notifications", "triggers")
    for path in sorted((ROOT / app).rglob("*.py"))
    if "migrations" not in path.parts
]


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    language: str
    text: str


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(*languages: str) -> list[Block]:
    return [
        Block(named(path), language, dedent(text))
        for path in DOCUMENTS
        for _, language, text in BLOCK.findall(path.read_text())
        if language in languages
    ]


def spans(text: str) -> list[str]:
    return SPAN.findall(BLOCK.sub("", text))


def section(text: str, heading: str) -> str:
    """Return the text under a heading, up to the next heading of its level."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def table(text: str) -> list[list[str]]:
    """Return the cells of a text's table rows."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


# --- Links, paths and names -----------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in LINK.findall(path.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_path_is_there(path: Path) -> None:
    tops = {child.name for child in ROOT.iterdir()} - {"var"}
    for span in spans(path.read_text()):
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span) and span.split("/")[0] in tops:
            assert (ROOT / span).exists(), span


def modules_called(name: str, package: str) -> list[str]:
    """Return the engine's modules of a name, in a package or, for "*", in any."""
    paths = [*(ROOT / "scheduling").glob(f"{package}/{name}.py")]
    if package in ("*", "scheduling"):
        paths += [ROOT / "scheduling" / f"{name}.py", ROOT / "scheduling" / name / "__init__.py"]
    shown = [
        path for path in paths if path.exists() and path.parent.name not in ("admin", "models")
    ]
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shown]
    return [name.removesuffix(".__init__") for name in dotted]


def is_there(module: str, name: str) -> bool:
    """Return whether a module has such a name, or a package such a module."""
    found = importlib.import_module(module)
    package = hasattr(found, "__path__")
    return hasattr(found, name) or (package and find_spec(f"{module}.{name}") is not None)


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_name_in_a_module_is_there(path: Path) -> None:
    for span in spans(path.read_text()):
        found = re.fullmatch(r"(?:scheduling\.)?(?:(\w+)\.)?(\w+)\.(\w+)(\(\w*\))?", span)
        if not found or found[3] == "py":
            continue
        package, module, name = found[1], found[2], found[3]
        if meant := modules_called(module, package or "*"):
            assert any(is_there(one, name) for one in meant), span


def test_every_test_that_is_named_exists() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for span in spans(ARCHITECTURE):
        if re.fullmatch(r"test_\w+", span):
            assert f"def {span}(" in written, span


def test_the_map_of_modules_is_fresh() -> None:
    assert module_map.document() == ARCHITECTURE, "write it anew: python -m tests.module_map"


@pytest.mark.parametrize("package", module_map.PACKAGES)
def test_every_module_says_its_part_in_its_first_line(package: str) -> None:
    modules = list((ROOT / package).glob("*.py"))
    assert [path.name for path in modules if not module_map.first_line(path)] == []


def test_every_field_of_a_json_shape_is_explained() -> None:
    parts = re.split(r"^`(\w+Shape)`:", SHAPES, flags=re.MULTILINE)[1:]
    explained = {
        shape: [row[0].strip("`") for row in table(rows.split("\n## ")[0])[1:]]
        for shape, rows in zip(parts[::2], parts[1::2], strict=True)
    }
    fields = {
        name: list(shape.__annotations__)
        for name, shape in vars(shapes).items()
        if is_typeddict(shape)
    }
    assert explained == fields


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# --- Words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("States of a run", State.values),
        ("Origins of a run", Origin.values),
        ("Policies", [*CatchUp.values, *Overlap.values, *ManagedBy.values]),
    ],
)
def test_the_glossary_has_every_choice(heading: str, words: list[str]) -> None:
    text = section(GLOSSARY, heading)
    assert [word for word in words if f"**{word}**" not in text and f"`{word}`" not in text] == []


def test_the_glossary_has_every_policy() -> None:
    words = {field.name for field in Policy._meta.get_fields()}
    apart = {"schedule", "owner", "paused_at", "paused_until", "pause_reason", "paused_by"}
    apart |= {"resumed_at"}
    rows = table(section(GLOSSARY, "Policies"))
    assert {row[0].strip("*") for row in rows[1:]} == words - apart


def test_the_table_of_transitions_names_states() -> None:
    rows = table(section(ARCHITECTURE, "States of a run"))[1:]
    words = {word for row in rows for word in re.findall(r"[a-z]+", row[0].replace("(new)", ""))}
    assert words == set(State.values)


# --- Commands -------------------------------------------------------------------------------------


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Yield the documents' command lines, from code blocks and from the text."""
    for block in blocks("sh", "console"):
        lines = block.text.splitlines()
        if block.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        pending = ""
        for line in lines:
            pending += line
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                pending += "\n"
                continue
            pending = ""
            yield block.document, words
    for path in DOCUMENTS:
        for span in spans(path.read_text()):
            if span.startswith((".venv/bin/", "manage.py ", "make ")):
                yield named(path), shlex.split(span)


def as_typed(words: list[str]) -> list[str]:
    """Return a command line without variables, and with an id where the document says ID."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return [str(UUID(int=0)) if word == "ID" else word for word in words]


def lines_of(program: str) -> list[tuple[str, list[str]]]:
    """Return the arguments of each call of a program, with the document that has it."""
    lines = [(document, as_typed(words)) for document, words in command_lines()]
    return [
        (document, words[words.index(program) + 1 :])
        for document, words in lines
        if program in words
    ]


@pytest.mark.parametrize(("document", "words"), lines_of("manage.py"))
def test_manage_py_knows_every_command(document: str, words: list[str]) -> None:
    name, *arguments = words
    app = get_commands()[name]
    command = app if isinstance(app, BaseCommand) else load_command_class(app, name)
    command.create_parser("manage.py", name).parse_args(arguments)


@pytest.mark.parametrize(("document", "words"), lines_of(".venv/bin/celery"))
def test_celery_knows_every_command(document: str, words: list[str]) -> None:
    assert words[:2] == ["-A", "config"]
    command = celery.commands[words[2]]
    if words[2] == "inspect":
        assert words[3] in Panel.meta
    else:
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words[3:] if word.startswith("-")} <= options


def test_make_knows_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    called = {word for _, words in lines_of("make") for word in words if word.isalpha()}
    assert called
    assert called <= targets


@pytest.mark.django_db
@pytest.mark.parametrize("block", blocks("sql"))
def test_postgres_takes_all_sql(block: Block) -> None:
    with connection.cursor() as cursor:
        cursor.execute(block.text)


@pytest.mark.django_db
@pytest.mark.parametrize("block", blocks("python"))
def test_python_takes_all_examples(block: Block) -> None:
    """Code that defines a task is not called: the task would stay in the app."""
    tree = ast.parse(block.text)
    if "@shared_task" in block.text:
        tree.body = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(compile(tree, block.document, "exec"), {})  # noqa: S102


@pytest.mark.parametrize("block", blocks("sh"))
def test_the_imports_in_shell_examples_are_there(block: Block) -> None:
    for module, names in re.findall(r"from ([\w.]+) import ([\w, ]+)", block.text):
        for name in names.split(","):
            assert is_there(module, name.strip()), f"{module}: {name}"


# --- Settings -------------------------------------------------------------------------------------


def variables_read() -> dict[str, ast.expr | None]:
    """Return the variables that the settings read, with their defaults."""
    found = {}
    readers = ("env.", "_env.", "required")
    files = [ROOT / "config/settings.py", ROOT / "scheduling/defaults.py"]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(readers):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant):
                default = {word.arg: word.value for word in node.keywords}.get("default")
                found[str(name.value)] = default
    return found


def settings_tables() -> tuple[list[list[str]], list[list[str]]]:
    own, elsewhere = section(OPERATIONS, "Settings").split("\nRead elsewhere")
    return table(own)[1:], table(elsewhere)[1:]


def test_every_variable_of_the_settings_is_documented_and_no_other() -> None:
    rows, _ = settings_tables()
    assert sorted(row[0].strip("`") for row in rows) == sorted(variables_read())


def test_the_defaults_are_those_of_the_settings() -> None:
    read = variables_read()
    for variable, default, _ in settings_tables()[0]:
        value = read[variable.strip("`")]
        if isinstance(value, ast.Constant):
            words = str(value.value)
            if isinstance(value.value, bool):
                words = "on" if value.value else "off"
            assert re.split(r" \(", default)[0].strip("`") == words, variable


def test_variables_that_are_read_elsewhere_are() -> None:
    files = ["Procfile", "docker-compose.yml", "manage.py", "Makefile"]
    texts = [(ROOT / file).read_text() for file in files]
    texts += [path.read_text() for path in (ROOT / "config").rglob("*.py")]
    texts += [path.read_text() for path in (ROOT / "notifications").rglob("*.py")]
    for row in settings_tables()[1]:
        assert any(row[0].strip("`") in text for text in texts), row[0]


# --- Log events -----------------------------------------------------------------------------------


def events_emitted() -> set[str]:
    return {name for path in SOURCES for name in events_of(ast.parse(path.read_text()))}


def events_of(module: ast.Module) -> Iterator[str]:
    """Yield the names that a module gives to `event`, and the one-word messages of its loggers."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            called, names_first = ast.unparse(call.func), len(call.args) == 1
            if called in ("event", "going_on"):
                yield from names_in(call.args[1], function, module)
            elif names_first and (called == "refusals.log" or called.startswith("logger.")):
                yield from names_in(call.args[0], function, module)


def names_in(node: ast.expr, function: ast.FunctionDef, module: ast.Module) -> Iterator[str]:
    """Yield the possible values of an expression for a name."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from names_in(node.body, function, module)
        yield from names_in(node.orelse, function, module)
    elif isinstance(node, ast.JoinedStr):  # f"run_{state}", of a final one
        prefix = node.values[0]
        assert isinstance(prefix, ast.Constant), ast.unparse(node)
        yield from (f"{prefix.value!s}{state}" for state in FINAL)
    else:
        assert isinstance(node, ast.Name), ast.unparse(node)
        for value in values_of(node.id, function, module):
            yield from names_in(value, function, module)


def values_of(name: str, function: ast.FunctionDef, module: ast.Module) -> Iterator[ast.expr]:
    """Yield values assigned to a name in a function, or passed for it by the function's callers."""
    parameters = [argument.arg for argument in function.args.args if argument.arg != "self"]
    for node in ast.walk(module if name in parameters else function):
        if name in parameters:
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(function.name):
                yield node.args[parameters.index(name)]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            yield node.value


def test_every_log_event_is_documented_and_no_other() -> None:
    rows = table(section(OPERATIONS, "Log events"))[1:]
    documented = [name for row in rows for name in SPAN.findall(row[0])]
    assert len(documented) == len(set(documented))
    assert set(documented) == events_emitted()
