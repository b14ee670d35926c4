"""The Procfile, the compose file, the image and the lock file, held against settings.py."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from honcho.environ import parse_procfile

ROOT = Path(__file__).resolve().parents[2]
PROCFILE: dict[str, str] = parse_procfile((ROOT / "Procfile").read_text()).processes
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, Any] = COMPOSE["services"]
SETTINGS = (ROOT / "config" / "settings.py").read_text()
OURS = ("release", "web", "beat", "worker")
NEEDED = {"SECRET_KEY": "s3cret-for-this-test-" * 3, "POSTGRES_PASSWORD": "pw"}


def substituted(value: str, environment: dict[str, str]) -> str:
    """Substitute as compose and the shell do: ${NAME}, ${NAME:-default} and ${NAME:?message}."""

    def value_of(found: re.Match[str]) -> str:
        name, operator, text = found.groups()
        if environment.get(name):
            return environment[name]
        assert operator != ":?", f"{name} is not set"
        return text or ""

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value_of, value)


class TestSettings:
    @pytest.mark.parametrize("service", OURS)
    def test_the_services_set_variables_that_settings_read_and_all_that_they_need(
        self, service: str
    ) -> None:
        read = set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', SETTINGS))
        needed = set(re.findall(r'required\(\s*"([A-Z_]+)"', SETTINGS))
        given = set(SERVICES[service]["environment"])

        assert needed <= given
        assert given <= read | needed

    def test_production_settings_accept_what_the_services_are_given(self) -> None:
        environment = {
            name: substituted(value, NEEDED)
            for name, value in SERVICES["web"]["environment"].items()
        }
        names = "DEBUG ALLOWED_HOSTS EMAIL_HOST EMAIL_PORT TIME_ZONE CSRF_TRUSTED_ORIGINS"
        code = (
            "import json; from django.conf import settings as s; "
            f"print(json.dumps([s.DATABASES['default']['HOST'], s.CELERY_BROKER_URL,"
            f" *(getattr(s, name) for name in {names.split()})]))"
        )
        environment |= {"DJANGO_SETTINGS_MODULE": "config.settings", "PATH": "/usr/bin:/bin"}

        shown = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )

        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout) == [
            *("postgres", "redis://redis:6379/0", False, ["localhost", "127.0.0.1"]),
            *("mailpit", 1025, "UTC", []),
        ]

    def test_no_secret_is_written_down(self) -> None:
        for name in NEEDED:
            assert f"${{{name}:?" in (ROOT / "docker-compose.yml").read_text()
        for text in (DOCKERFILE, (ROOT / "Procfile").read_text()):
            assert "SECRET" not in text


class TestCommands:
    @pytest.mark.parametrize("service", OURS)
    def test_compose_runs_what_the_procfile_runs(self, service: str) -> None:
        assert SERVICES[service]["command"] == substituted(PROCFILE[service], {})

    def test_the_image_runs_web_unless_told_otherwise(self) -> None:
        command = json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])  # type: ignore[index]

        assert " ".join(command) == SERVICES["web"]["command"]

    def test_beat_and_worker_are_the_stock_commands(self) -> None:
        assert PROCFILE["beat"] == "celery -A config beat"
        assert PROCFILE["worker"] == "celery -A config worker"

    def test_what_make_up_keeps_alive_is_one_program_each(self) -> None:
        for name in ("web", "beat", "worker"):
            assert not re.search(r"[;&|]", PROCFILE[name])

    def test_web_listens_where_compose_publishes_and_asks(self) -> None:
        port = re.search(r":(\d+)", SERVICES["web"]["command"])[1]  # type: ignore[index]

        assert SERVICES["web"]["ports"] == [f"${{PORT:-8000}}:{port}"]
        assert f"EXPOSE {port}" in DOCKERFILE
        assert f":{port}/healthz/web" in SERVICES["web"]["healthcheck"]["test"][-1]

    def test_beat_and_worker_are_asked_for_by_their_own_heartbeats(self) -> None:
        for service in ("beat", "worker"):
            check = " ".join(SERVICES[service]["healthcheck"]["test"])
            assert f"manage.py health {service} --here" in check


class TestServices:
    def test_they_are_the_versions_that_truebeat_needs(self) -> None:
        versions = {
            name: int(SERVICES[name]["image"].split(":")[1].split(".")[0])
            for name in ("postgres", "redis")
        }

        assert versions["postgres"] >= 17
        assert versions["redis"] >= 7

    def test_each_that_goes_on_running_has_a_health_check_and_is_started_again(self) -> None:
        for name in set(SERVICES) - {"release"}:
            assert SERVICES[name]["healthcheck"]["test"], name
            assert SERVICES[name]["restart"] == "unless-stopped", name

    def test_nothing_of_ours_starts_before_what_it_needs_is_healthy_and_migrated(self) -> None:
        healthy = {"postgres": "service_healthy", "redis": "service_healthy"}
        migrated = healthy | {"release": "service_completed_successfully"}
        for service in OURS:
            needs = {k: v["condition"] for k, v in SERVICES[service]["depends_on"].items()}
            assert needs == (healthy if service == "release" else migrated)

    def test_what_must_survive_lies_in_volumes(self) -> None:
        assert "--appendonly yes" in SERVICES["redis"]["command"]
        used = {v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])}
        assert used == set(COMPOSE["volumes"]) == {"postgres", "redis"}

    def test_only_web_is_open_to_the_network(self) -> None:
        for name in set(SERVICES) - {"web"}:
            for port in SERVICES[name].get("ports", []):
                assert port.startswith("127.0.0.1:"), name


class TestImage:
    def test_one_image_runs_everything_of_ours(self) -> None:
        assert {SERVICES[service]["image"] for service in OURS} == {"truebeat"}

    def test_it_is_built_in_two_stages_from_the_lock_file_and_runs_as_nobody_special(self) -> None:
        stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]

        assert len(stages) == 2
        assert "--require-hashes --requirement requirements-up.lock" in stages[0]
        assert "pip" not in stages[1]
        assert re.search(r"^USER (?!0$|root$)\S+$", stages[1], re.MULTILINE)

    def test_it_is_given_every_app_and_no_tests_or_data(self) -> None:
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        not_for_it = {"tests", "bench", "chaos"}
        packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - not_for_it

        assert lines[0] == "*"
        assert packages <= {line.removeprefix("!") for line in lines}
        assert not {"!tests", "!var", "!.venv", "!.git"} & set(lines)


class TestLock:
    LOCK = (ROOT / "requirements.lock").read_text()

    def test_it_pins_every_requirement_with_hashes(self) -> None:
        for block in re.split(r"\n(?=\S)", self.LOCK.strip()):
            if not block.startswith("#"):
                assert re.match(r"[\w.-]+==\S+( ;.*)? \\\n +--hash=sha256:", block), block

    def test_it_names_no_index(self) -> None:
        assert not re.search(r"https?:|file:|--index|--extra-index|--find-links", self.LOCK)

    @pytest.mark.parametrize(
        "source", ["requirements.in", "requirements-up.in", "requirements-dev.in"]
    )
    def test_it_has_what_was_asked_for(self, source: str) -> None:
        names = re.findall(r"^([A-Za-z][\w-]*)", (ROOT / source).read_text(), re.MULTILINE)

        locked = set(re.findall(r"^([\w.-]+)==", self.LOCK, re.MULTILINE))
        assert {name.lower().replace("_", "-") for name in names} <= locked

    def test_what_make_up_installs_is_a_part_of_it_in_the_same_versions(self) -> None:
        def pins(text: str) -> set[str]:
            return {block for block in re.split(r"\n(?=\S)", text.strip()) if block[0] != "#"}

        smaller = pins((ROOT / "requirements-up.lock").read_text())
        assert smaller < pins(self.LOCK)
        assert not {"ruff", "mypy", "pytest"} & {pin.split("==")[0] for pin in smaller}
