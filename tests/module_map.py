"""The module map of docs/architecture.md, made from the first line of each module's docstring.

`python -m tests.module_map` writes it; a test says when it is stale.
"""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- module map -->\n", "<!-- end of the module map -->"
# From the top of the layers to the bottom.
PACKAGES = (
    "scheduling", "scheduling/admin", "scheduling/admin/schedules", "scheduling/admin/runs",
    "scheduling/admin/common", "scheduling/management", "scheduling/checks",
    "scheduling/beat", "scheduling/workers", "scheduling/celery_app", "scheduling/history",
    "scheduling/execution", "scheduling/failures", "scheduling/runs", "scheduling/schedules",
    "scheduling/models", "scheduling/outgoing", "scheduling/broker", "scheduling/postgres",
    "scheduling/recurrence", "notifications", "triggers", "config", "config/embedded", "bench",
    "chaos", "chaos/laws",
)  # fmt: skip


def document() -> str:
    """Return docs/architecture.md with today's map."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    sections = "\n".join(map(_section, PACKAGES))
    return f"{before}{BEGIN}\n{sections}\n{END}{after}"


def _section(package: str) -> str:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", f"{package}/*.py"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    paths = sorted(Path(path) for path in tracked if (ROOT / path).exists())
    rows = [
        f"| `{path.name}` | {first_line(path)} |"
        for path in paths
        if path.parent == Path(package) and path.name != "__init__.py"
    ]
    intro = first_line(Path(package) / "__init__.py")
    return "\n".join(
        [f"### `{package}/`\n", f"{intro}.\n", "| module | its part |", "|---|---|", *rows, ""]
    )


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return docstring.partition("\n")[0].removesuffix(".")


if __name__ == "__main__":
    DOCUMENT.write_text(document())
