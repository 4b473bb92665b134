# Everything here needs only CPython >= 3.11, GNU make and a package index; the rest is set up under .tools/ and .venv/.
# Another interpreter: `make run PYTHON=python3.13`.

.DEFAULT_GOAL := help
# Two recipes of one run share one environment, and pytest's summary has to stay last.
.NOTPARALLEL:
# Only POSIX: a minimal machine has no bash.
SHELL := /bin/sh
.SHELLFLAGS := -eu -c

BIN := .venv/bin
POETRY := .tools/poetry/bin/python tools/poetry.py
PIP_INSTALL := .tools/poetry/bin/python -m pip install -qq --disable-pip-version-check
# Without paths it runs `testpaths` of pyproject.toml: all tiers except tests/soak.
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadfile
# The tests that depend on the versions of aiohttp and uvicorn.
HTTP_LAYERS := tests/asgi tests/integration/test_server.py tests/e2e/test_wire_limits.py
IMAGE := usersvc
# CPython 3.13.15 on Debian 13 (3.13.15-slim-trixie), also in deploy/compose.yaml.
BASE_IMAGE := python@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
# Expanded only by the targets that need them.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)
ENGINE = $(or $(shell command -v docker || command -v podman),$(error needs docker or podman on PATH))

# The environment of the project, even if the caller has activated another one.
export VIRTUAL_ENV := $(CURDIR)/.venv
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH
# If the user has configured `pip install --user`, pip would fail inside an environment.
export PIP_USER := 0
# Without bytecode, each of the hundreds of processes that the tests start would take twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

# --- targets for users --------------------------------------------------------------------------------------------

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1#\2/p' Makefile | while IFS='#' read -r target words; do \
		printf '  make %-12s %s\n' "$$target" "$$words"; done

.PHONY: run
run: .venv/extras.stamp ## start the service (settings: environment or .env)
	@exec $(BIN)/usersvc serve

.PHONY: test
test: .venv/everything.stamp ## run features and tests, except the long ones of `make soak`: up to 4 minutes
	$(BIN)/behave --format progress
	$(BIN)/behave --format progress --stage http
	$(BIN)/behave --format progress --stage http -D storage=memory
	$(BIN)/behave --format progress --stage http -D storage=postgres
	$(PYTEST) $(COVERAGE)

.PHONY: coverage
coverage: COVERAGE := --cov
coverage: test ## like test, and fail below 95 % coverage (needs PostgreSQL and Redis)

.PHONY: soak
soak: newest oldest ## run all other tests: kills, faults, fuzzing, proxies, browser, wheel, every ASGI server
	$(PYTEST) tests/soak tests/asgi --every-pair

.PHONY: bdd
bdd: .venv/everything.stamp ## run the features on the use cases with fakes: seconds
	$(BIN)/behave

.PHONY: check
check: static docs coverage soak ## run everything that must pass before a change is merged

.PHONY: static
static: .venv/everything.stamp ## check format, lint, types, architecture and lock file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(POETRY) check --lock

.PHONY: docs
docs: .venv/everything.stamp ## build the documentation into site/; fail on broken links
# The variable suppresses an advertisement.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: fix
fix: .venv/everything.stamp ## format, and apply the fixes of the linter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: .tools/bench/made.stamp .tools/users/made.stamp ## measure the service and its peers: ten minutes; needs wrk
	.tools/bench/bin/python -m benchmarks

.PHONY: bench-asgi
bench-asgi: .venv/everything.stamp ## measure the ASGI adapter and its peers
	$(BIN)/python -m benchmarks.asgi

.PHONY: bench-flood
bench-flood: .venv/everything.stamp ## measure reads during a flood of registrations and of long paths
	$(BIN)/python -m benchmarks.flood

.PHONY: bench-many
bench-many: .venv/everything.stamp ## measure one, two and four processes on SQLite and PostgreSQL; needs wrk
	$(BIN)/python -m benchmarks.processes postgresql:///postgres

.PHONY: oldest
oldest: .venv/everything.stamp .tools/oldest/made.stamp ## test the HTTP layers on the oldest supported aiohttp and uvicorn
	PYTHONPATH=$(CURDIR)/.tools/oldest $(PYTEST) $(HTTP_LAYERS)

# Installed each time. A failure is reported and ignored, also that of the package index.
.PHONY: newest
newest: .venv/everything.stamp .tools/poetry/made.stamp ## the same on the newest aiohttp and uvicorn; only reports failures
	-rm -rf .tools/newest && $(PIP_INSTALL) --target .tools/newest aiohttp uvicorn && \
		ls -d .tools/newest/aiohttp-*.dist-info .tools/newest/uvicorn-*.dist-info && \
		PYTHONPATH=$(CURDIR)/.tools/newest $(PYTEST) $(HTTP_LAYERS)

.PHONY: extras
extras: .venv/run-time.stamp ## install all optional dependencies; `make run` installs those that the settings need
	$(POETRY) install --only main --all-extras --no-interaction

.PHONY: lock
lock: .tools/poetry/made.stamp .venv/made.stamp ## resolve the dependencies after a change in pyproject.toml
	$(POETRY) lock

.PHONY: lock-tools
lock-tools: .tools/poetry/made.stamp ## resolve Poetry itself after a change in tools/poetry.in
	.tools/poetry/bin/python tools/lock_poetry.py

.PHONY: build
build: .tools/poetry/made.stamp ## build the wheel and the source package, into dist/
	$(POETRY) build --clean

.PHONY: sbom
sbom: .tools/shipped/made.stamp .tools/audit/made.stamp ## write the bill of materials (CycloneDX) of what the image ships, into dist/
	@mkdir -p dist
	.tools/audit/bin/cyclonedx-py environment --output-file dist/sbom.cdx.json \
		.tools/shipped/bin/python

.PHONY: audit
audit: .tools/shipped/made.stamp .tools/audit/made.stamp ## look up known vulnerabilities of what the image ships
	.tools/audit/bin/pip-audit --skip-editable --path .tools/shipped/lib/python*/site-packages

.PHONY: docker
docker: ## build the container image
# podman's default image format has no HEALTHCHECK
	BUILDAH_FORMAT=docker $(ENGINE) build --build-context python:3.13-slim=docker-image://$(BASE_IMAGE) \
		$(if $(PIP_INDEX_URL),--build-arg PIP_INDEX_URL) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
		-t $(IMAGE) .

.PHONY: docker-run
docker-run: docker ## run the image: read-only, on 127.0.0.1:8000, data in the volume usersvc-data
	$(ENGINE) run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
		--publish 127.0.0.1:8000:8000 --volume usersvc-data:/data $(DOCKER_RUN_FLAGS) $(IMAGE)

.PHONY: clean
clean: ## remove everything that make created, but no data
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .schemathesis \
		dist site htmlcov reports coverage.xml .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environments ---------------------------------------------------------------------------------------------
# A stamp is touched last, so that the next run continues an interrupted one. Each is inside its environment, and is
# deleted with it.

# Runs every time, but changes its file only when another interpreter is chosen.
.tools/python: FORCE
	@PYTHON='$(PYTHON)' tools/choose-python $@
.PHONY: FORCE
FORCE:

.tools/poetry/made.stamp: .tools/python tools/poetry.txt
	@echo 'Setting up Poetry in .tools/poetry ...'
	@rm -rf .tools/poetry
	@read -r python <.tools/python && "$$python" -m venv .tools/poetry
	@$(PIP_INSTALL) --require-hashes --requirement tools/poetry.txt
	@touch $@

# Without pip: Poetry has its own.
.venv/made.stamp: .tools/python
	@read -r python <.tools/python && "$$python" -m venv --clear --without-pip .venv
	@touch $@

# `install`, unlike `sync` below, does not remove the development tools.
.venv/run-time.stamp: .venv/made.stamp .tools/poetry/made.stamp pyproject.toml poetry.lock
	$(POETRY) install --only main --no-interaction
	@touch $@

# Runs every time, but changes its file only when the settings need other extras.
.venv/extras: .venv/run-time.stamp FORCE
	@$(BIN)/python tools/extras.py >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# `install` keeps the extras that are not named.
.venv/extras.stamp: .venv/extras .tools/poetry/made.stamp pyproject.toml poetry.lock
	@extras=$$(cat .venv/extras); [ -z "$$extras" ] || \
		$(POETRY) install --only main --extras "$$extras" --no-interaction
	@touch $@

# The lock file has the newest.
.tools/oldest/made.stamp: .tools/poetry/made.stamp pyproject.toml
	@rm -rf .tools/oldest
	$(PIP_INSTALL) --no-deps --target .tools/oldest \
		$$(sed -n -e 's/.*"\(aiohttp\) (>=\([0-9.]*\),.*/\1==\2/p' -e 's/.*"\(uvicorn\) (>=\([0-9.]*\),.*/\1==\2/p' pyproject.toml)
	@touch $@

# The environment of users: some libraries import others if they are installed.
.tools/users/made.stamp: .tools/python .tools/poetry/made.stamp pyproject.toml poetry.lock
	@read -r python <.tools/python && "$$python" -m venv --clear --without-pip .tools/users
	VIRTUAL_ENV=$(CURDIR)/.tools/users $(POETRY) install --only main --no-interaction
	@touch $@

.tools/shipped/made.stamp: .tools/python .tools/poetry/made.stamp pyproject.toml poetry.lock
	@read -r python <.tools/python && "$$python" -m venv --clear --without-pip .tools/shipped
	VIRTUAL_ENV=$(CURDIR)/.tools/shipped $(POETRY) install --only main --all-extras --no-interaction
	@touch $@

.tools/audit/made.stamp: .tools/python
	@read -r python <.tools/python && "$$python" -m venv --clear .tools/audit
	.tools/audit/bin/python -m pip install -qq --disable-pip-version-check 'cyclonedx-bom>=7.5,<8' 'pip-audit>=2.9,<3'
	@touch $@

.tools/bench/made.stamp: .tools/python .tools/poetry/made.stamp pyproject.toml poetry.lock
	@read -r python <.tools/python && "$$python" -m venv --clear --without-pip .tools/bench
	VIRTUAL_ENV=$(CURDIR)/.tools/bench $(POETRY) install --only main,bench --no-interaction
	@touch $@

.venv/everything.stamp: .venv/made.stamp .tools/poetry/made.stamp pyproject.toml poetry.lock
	$(POETRY) sync --all-extras --no-interaction
	@touch .venv/run-time.stamp $@
