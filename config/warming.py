"""Work of the web service before its first request, which would wait for it otherwise."""

import gc
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.forms.renderers import get_default_renderer
from django.template import TemplateSyntaxError, engines
from django.urls import reverse

from scheduling.registry import job_names

# Everything that the admin's pages and their forms include.
TEMPLATES = ("admin/**/*.html", "django/forms/**/*.html")


def warm_up() -> None:
    """Resolve the URLs, import the jobs, compile the admin's templates; it needs no database."""
    reverse("admin:index")
    job_names()
    renderer: Any = get_default_renderer()
    for engine in (engines["django"], renderer.engine):
        for folder in engine.template_dirs:
            for name in _names(Path(folder)):
                with suppress(TemplateSyntaxError):  # of another app's, which may be of no use here
                    engine.get_template(name)
    # All this stays for as long as the process does: the collector need not look at it again.
    gc.collect()
    gc.freeze()


def _names(folder: Path) -> set[str]:
    found = (path for pattern in TEMPLATES for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix() for path in found}
