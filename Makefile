# Everything here needs git, make and a Python >= 3.11 with venv and pip, and nothing else.

PYTHON ?= $(shell for p in python3.11 python3.12 python3 python3.13 python3.14; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
# Made when all of requirements.lock is in .venv; and when what `make up` runs is.
READY := $(VENV)/.ready
UP_READY := $(VENV)/.ready-up
EMBEDDED := $(PY) -m config.embedded
# One for each core, and no fewer than three: the tests wait for other processes much of their time.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
	n=$$(( n < 3 ? 3 : n )); echo $$(( n > 8 ? 8 : n )))

.DEFAULT_GOAL := help
.PHONY: help up test check format setup bench chaos manage shell lock clean reset

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="	" read -r name what; do \
		printf '  make %-8s %s\n' "$$name" "$$what"; done

up: $(UP_READY) ## Run all of Truebeat here: services, demo data, web (PORT=8000), beat and worker
	@$(EMBEDDED) up

test: $(READY) ## Run the tests (ARGS="-k retry -x" for some; WORKERS=1 one by one)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(READY) ## Check style, types, settings and migrations
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	DEBUG=1 $(VENV)/bin/mypy .
	$(EMBEDDED) run --throwaway -- $(PY) manage.py check --fail-level WARNING
	$(EMBEDDED) run --throwaway -- $(PY) manage.py makemigrations --check --dry-run

format: $(READY) ## Format the code and fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(READY) ## Make .venv from requirements.lock

bench: $(READY) ## Measure Truebeat beside what people use today (ARGS="..." to choose)
	$(EMBEDDED) run --throwaway -- $(PY) -m bench $(ARGS)

chaos: $(READY) ## Break everything at random and check what ran (ARGS="--seconds 600 --seed 7")
	$(PY) -m chaos $(ARGS)

manage: $(UP_READY) ## Run manage.py with services up (ARGS="schedule list")
	@$(EMBEDDED) run -- $(PY) manage.py $(ARGS)

shell: $(UP_READY) ## Open a Python shell with services up
	@$(EMBEDDED) run -- $(PY) manage.py shell

LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --quiet \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: ## Resolve requirements*.in into the two lock files (needs uv)
	$(LOCK) requirements-dev.in --output-file requirements.lock $(ARGS) >/dev/null
	@# The same versions, of what `make up` runs alone.
	$(LOCK) requirements-up.in --constraint requirements.lock --output-file requirements-up.lock \
		>/dev/null

clean: ## Remove .venv and caches; the data in var/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

reset: ## Remove the data in var/
	rm -rf var

# $(call install,LOCK,STAMP): what a lock file pins goes into .venv, which is made first if there is
# none, or if its packages are not those of today's lock files. The lock file is also what two makes
# at once queue up on; the second finds the work done.
define install
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv and pip; set PYTHON=..." >&2; exit 1; }
	@exec 9<requirements.lock; ! command -v flock >/dev/null || flock 9; \
	test $(2) -nt $(1) || { \
		echo "Installing $(1) into $(VENV) with $(PYTHON) ..." && \
		{ { test ! -e $(2) && test $(UP_READY) -nt requirements-up.lock; } || \
			$(PYTHON) -m venv --clear $(VENV); } && \
		$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r $(1) && \
		touch $(UP_READY) $(2); }
endef

$(READY): requirements.lock
	$(call install,requirements.lock,$(READY))

$(UP_READY): requirements-up.lock
	$(call install,requirements-up.lock,$(UP_READY))
