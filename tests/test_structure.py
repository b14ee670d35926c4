"""The layers of docs/architecture.md: the imports between packages, read from the sources."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The packages and modules of `scheduling/`, from low to high: each imports from earlier rows only.
LAYERS = (
    (
        "base_job", "celery_internals", "clock", "defaults", "errors", "ids", "logs", "near_names",
        "words",
    ),
    ("postgres", "outgoing", "broker", "recurrence", "registry"),
    ("models", "task_options", "worker_process"),
    ("heartbeats", "runs", "schedules"),
    ("shapes", "health"),
    ("failures",),
    ("execution",),
    ("history", "jobs"),
    ("celery_app", "tasks", "beat", "admin", "management"),
    ("workers", "checks"),
    ("apps",),
)  # fmt: skip


def modules(package: str) -> dict[str, Path]:
    """Return the modules of a package, without its migrations, by their dotted names."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "migrations" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports anywhere, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def nearest(name: str, known: dict[str, Path]) -> str:
    """Return the known module to which a dotted name belongs, or ""."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("package", ["scheduling", "notifications", "triggers", "chaos", "bench"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    known = modules(package)
    arrows = {
        module: {nearest(name, known) for name in imported(path)} - {"", module}
        for module, path in known.items()
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_package_imports_from_lower_layers_only() -> None:
    known = modules("scheduling")
    del known["scheduling"]
    layers = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert set(layers) == {module.split(".")[1] for module in known}
    for module, path in known.items():
        home = module.split(".")[1]
        for name in {nearest(name, known) for name in imported(path)} - {""}:
            other = name.split(".")[1]
            assert other == home or layers[other] < layers[home], f"{module} -> {name}"


@pytest.mark.parametrize(
    ("package", "stranger"),
    [
        ("scheduling", "notifications"),
        ("scheduling", "tests"),
        ("scheduling.recurrence", "django"),
        ("scheduling.recurrence", "scheduling.models"),
        ("chaos.laws", "scheduling"),
    ],
)
def test_what_must_know_nothing_of_another_imports_nothing_of_it(
    package: str, stranger: str
) -> None:
    for module, path in modules(package.replace(".", "/")).items():
        names = [name for name in imported(path) if f"{name}.".startswith(f"{stranger}.")]
        assert names == [], module


def test_apps_of_jobs_use_the_public_face_alone() -> None:
    face = {"scheduling.jobs", "scheduling.recurrence", "scheduling.models"}
    tools = {"scheduling.clock", "scheduling.ids", "scheduling.logs", "scheduling.outgoing"}
    commands = {"scheduling.management", "scheduling.history.replaying"}
    known = modules("scheduling")
    for module, path in (modules("notifications") | modules("triggers")).items():
        used = {nearest(name, known) for name in imported(path)} - {""}
        allowed = face | tools | (commands if ".management." in module else set())
        strangers = [n for n in used if not any(f"{n}.".startswith(f"{a}.") for a in allowed)]
        assert strangers == [], module
