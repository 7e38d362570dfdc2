# The project's commands. Each installs what it needs first. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
TIMERS = $(BIN)/python -m cli
LOCALSTACK := .localstack
BENCH := .bench
AXE := $(VENV)/node_modules/axe-core
E2E = $(VENV)/dev.done $(LOCALSTACK)/runtime.done $(if $(AWS_ENDPOINT_URL),,$(LOCALSTACK)/done)
COMPOSE := docker compose -f docker-compose.localstack.yml

# $(call options,STAGE TENANT) is --stage "dev" --tenant "acme", for the variables that are set.
options = $(foreach name,$(1),$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) "$($(name))"))

.DEFAULT_GOAL := help
.PHONY: help run demo setup test test-fast test-pythons check fuzz chaos e2e simulate bench profile soak bench-lambda deploy destroy key keys revoke secrets localstack localstack-down openapi screenshot clean require-stage require-key

help:  ## list these commands
	@awk -F ':.*##  *' '/^[a-z0-9-]+:.*##/ {printf "  make %-16s %s\n", $$1, $$2}' Makefile

run: $(VENV)/run.done  ## serve Timers on http://127.0.0.1:8000 (settings: PORT, HOST, AUTH, …)
	@exec $(TIMERS) serve

demo: $(VENV)/run.done  ## serve a scratch database with a few timers (PORT)
	@exec $(TIMERS) demo

setup: $(E2E) $(AXE)  ## install everything that the tests need

test: $(VENV)/dev.done $(AXE)  ## run all tests, except those on LocalStack
	$(BIN)/python -m pytest -m 'not e2e' -n 2 --dist loadfile
	$(BIN)/python -m pytest -m e2e

test-fast: $(VENV)/dev.done  ## run the unit tests, in under a minute
	$(BIN)/python -m pytest tests/unit -m 'not e2e' -n 2 --dist loadfile

test-pythons: $(VENV)/dev.done  ## run the unit tests on the other supported Pythons of this machine
	@$(BIN)/python -m tools.pythons

check: $(VENV)/dev.done  ## lint, check formatting and types, then run all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	@$(MAKE) --no-print-directory test

fuzz: $(VENV)/dev.done  ## send the server random requests and check its responses (EXAMPLES, SEED)
	@$(BIN)/python -m tools.fuzz $(call options,EXAMPLES SEED)

chaos: $(VENV)/dev.done  ## kill and disturb Timers, and write docs/reliability.md (KILLS, STORMS, SEED)
	@$(BIN)/python -m tools.chaos $(call options,KILLS STORMS SEED)

e2e: $(E2E)  ## test a deployment on LocalStack (AWS_ENDPOINT_URL of a running one)
	$(BIN)/python -m pytest tests/e2e/localstack

simulate: $(VENV)/dev.done  ## simulate Timers on AWS, and print the lateness of its webhooks
	$(BIN)/python -m tools.simulation

bench: $(BENCH)/done  ## compare Timers with Celery, BullMQ and Quirrel, for docs/benchmarks.md (ROUNDS)
	@$(BENCH)/venv/bin/python -m bench $(call options,ROUNDS)

profile: $(BENCH)/done  ## print where the processor time of a create and of a webhook goes
	@$(BENCH)/venv/bin/python -m bench.profile

soak: $(BENCH)/done  ## serve for half an hour, and check memory, files and latency (MINUTES, RATE)
	@$(BENCH)/venv/bin/python -m bench.soak $(call options,MINUTES RATE)

bench-lambda: $(VENV)/dev.done $(LOCALSTACK)/runtime.done  ## measure the Lambda functions, for docs/benchmarks.md
	$(BIN)/python -m bench.cold_start

deploy: require-stage $(VENV)/deploy.done  ## create or update a stage on AWS (STAGE=dev, TOPIC, RATE, BURST, POLLERS)
	@$(TIMERS) deploy $(STAGE) $(call options,TOPIC RATE BURST POLLERS)

destroy: require-stage $(VENV)/deploy.done  ## delete a stage and all of its timers (STAGE=dev)
	@$(TIMERS) destroy $(STAGE)

# Keys and secrets belong to this machine's database, or to a STAGE.
key keys revoke secrets: $(VENV)/$(if $(STAGE),deploy,run).done

key:  ## create an API key and print it (TENANT, ROLE=full or read, STAGE)
	@$(TIMERS) keys add $(call options,STAGE TENANT ROLE)

keys:  ## list the API keys (STAGE)
	@$(TIMERS) keys list $(call options,STAGE)

revoke: require-key  ## disable an API key (KEY=…, STAGE)
	@$(TIMERS) keys revoke $(call options,STAGE) "$(KEY)"

secrets:  ## print or change the signing secrets (TENANT, ADD=new, RETIRE=whsec_…, STAGE)
	@$(TIMERS) secrets $(call options,STAGE TENANT ADD RETIRE)

localstack:  ## run Timers on LocalStack in Docker (PRECISION=60 for schedules as imprecise as on AWS)
	@command -v docker > /dev/null || { echo "Docker is missing. \`make e2e\` tests Timers on LocalStack without it." >&2; exit 1; }
	$(COMPOSE) up --build --detach --wait localstack schedule-runner
	@$(COMPOSE) logs --no-log-prefix deploy | tail -5

localstack-down:  ## stop LocalStack, and delete its timers
	$(COMPOSE) down

openapi: $(VENV)/run.done  ## write the API's OpenAPI document to docs/openapi.json
	@$(BIN)/python -c 'from chalicelib.http import openapi; print(openapi.document())' > docs/openapi.json

screenshot: $(VENV)/dev.done  ## take the README's screenshot of the console
	@$(BIN)/python -m tools.screenshot

clean:  ## delete environments and caches, but not the timers in .data/
	rm -rf $(VENV) $(LOCALSTACK) $(BENCH) .pythons *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

require-stage:
	@test -n "$(STAGE)" || { echo "Choose a stage: make $(MAKECMDGOALS) STAGE=dev" >&2; exit 1; }

require-key:
	@test -n "$(KEY)" || { echo "Name the key: make revoke KEY=… (\`make keys\` lists them)" >&2; exit 1; }

# $(call install,PURPOSE,MARKS) installs the first prerequisite, and the package for its command.
# Without build isolation, pip need not download setuptools again.
define install
@echo "Installing the libraries for $(1) …" >&2
@$(PIP) -r $<
@$(PIP) --no-build-isolation --no-deps -e .
@touch $@ $(2)
endef

$(VENV)/run.done: requirements-run.txt requirements.txt pyproject.toml | $(BIN)/python
	$(call install,Timers)

$(VENV)/deploy.done: requirements-deploy.txt requirements-run.txt requirements.txt pyproject.toml | $(BIN)/python
	$(call install,deployments,$(VENV)/run.done)

$(VENV)/dev.done: requirements-dev.txt requirements-deploy.txt requirements-run.txt requirements.txt pyproject.toml | $(BIN)/python
	$(call install,tests,$(VENV)/deploy.done $(VENV)/run.done)

# Checks the console's accessibility. Without npm, these tests are skipped.
$(AXE): | $(BIN)/python
	@if command -v npm > /dev/null; then echo "Installing axe-core …" >&2; \
	npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix $(VENV) axe-core@4.14.1; fi

# LocalStack needs older libraries, so it has an environment of its own.
$(LOCALSTACK)/done: tests/e2e/localstack/constraints.txt | $(BIN)/python
	@echo "Installing LocalStack …" >&2
	@rm -rf $(LOCALSTACK)/venv
	@$(BIN)/python -m venv $(LOCALSTACK)/venv
	@$(LOCALSTACK)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c $< "localstack-core[runtime]==4.9.2"
	@mkdir -p $(LOCALSTACK)/venv/usr/lib/localstack  # holds LocalStack's catalog of AWS calls, built below in 10 s
	@FILESYSTEM_ROOT=$(LOCALSTACK)/venv OVERRIDE_IN_DOCKER=0 $(LOCALSTACK)/venv/bin/python -m localstack.aws.spec > /dev/null
	@touch $@

# Functions see only the libraries that Lambda provides.
$(LOCALSTACK)/runtime.done: tests/e2e/localstack/runtime-requirements.txt | $(BIN)/python
	@echo "Installing the libraries of the Lambda runtime …" >&2
	@$(BIN)/python -m venv --clear $(LOCALSTACK)/runtime
	@$(LOCALSTACK)/runtime/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# If npm fails, the benchmark skips BullMQ and Quirrel and says so.
$(BENCH)/done: bench/requirements.txt bench/package.json bench/package-lock.json requirements-run.txt requirements.txt | $(BIN)/python
	@command -v node > /dev/null || { echo "Node.js is missing; the receiver needs it (on Debian and Ubuntu: apt-get install nodejs npm)." >&2; exit 1; }
	@echo "Installing the benchmark's peers …" >&2
	@rm -rf $(BENCH)
	@$(BIN)/python -m venv $(BENCH)/venv
	@$(BENCH)/venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@cp bench/package.json bench/package-lock.json $(BENCH)/
	@npm ci --prefix $(BENCH) --no-audit --no-fund --silent || true
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Timers needs Python 3.11 or newer. To choose one: make PYTHON=python3.11 run" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "Python's venv module is missing: install it (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
