"""The work of the web service before its first request."""

import os
import subprocess
import sys

from config.settings import BASE_DIR

READY = """
import sys
import config.wsgi
from django.forms.renderers import get_default_renderer
from django.template import engines
from django.urls import get_resolver
backends = (engines["django"], get_default_renderer().engine)
compiled = [set(backend.engine.template_loaders[0].get_template_cache) for backend in backends]
print(get_resolver()._populated)
print("notifications.tasks" in sys.modules)
print({"admin/change_form.html", "admin/scheduling/schedule/change_form.html"} <= compiled[0])
print("django/forms/widgets/select.html" in compiled[1])
"""


def test_it_is_ready_before_its_first_request_and_needs_no_database_for_that() -> None:
    away = {
        "DATABASE_URL": "postgres://unknown@127.0.0.1:9/none",
        "REDIS_URL": "redis://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", READY],
        cwd=BASE_DIR, env=os.environ | away, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 4), done.stderr
