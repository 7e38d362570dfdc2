# The commands of this project; each makes what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCALSTACK := .localstack
BENCH := .bench
AXE := $(VENV)/node_modules/axe-core
# Keys and secrets are those of a stage, or of this machine's database.
TENANTS = $(BIN)/python -m cli.keys $(if $(STAGE),--stage $(STAGE))

.PHONY: run demo test check screenshot openapi fuzz chaos e2e simulate bench soak bench-lambda deploy destroy key keys revoke secrets stage named localstack localstack-down clean

run: $(VENV)/run.done  ## serve Timers on http://127.0.0.1:8000 (PORT, HOST, AUTH, RATE, RETENTION, TIMERS_DB, ALLOWED_TARGETS)
	@exec $(BIN)/python -m standalone

demo: $(VENV)/run.done  ## look at it: a scratch database with a handful of timers, and the console (PORT)
	@exec $(BIN)/python -m cli.demo

test: $(VENV)/dev.done $(AXE)  ## run all tests, two files at a time but for those with real deadlines
	$(BIN)/python -m pytest -m 'not e2e' -n 2 --dist loadfile
	$(BIN)/python -m pytest -m e2e

check: $(VENV)/dev.done  ## lint, format, types, then all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(MAKE) --no-print-directory test

screenshot: $(VENV)/dev.done  ## take the README's picture of the console anew
	@$(BIN)/python -m tools.screenshot

openapi: $(VENV)/run.done  ## write the API's contract into docs/openapi.json
	@$(BIN)/python -c 'from chalicelib import openapi; print(openapi.document())' > docs/openapi.json

fuzz: $(VENV)/dev.done  ## send the server thousands of requests, right and wrong, and hold it to its contract (EXAMPLES for each operation, SEED)
	@$(BIN)/python -m tools.fuzz $(if $(EXAMPLES),--examples $(EXAMPLES)) $(if $(SEED),--seed $(SEED))

chaos: $(VENV)/dev.done  ## break what the service stands on, with kill -9 and much else, and write docs/reliability.md's figures (KILLS, STORMS, SEED)
	@$(BIN)/python -m tools.chaos $(if $(KILLS),--kills $(KILLS)) $(if $(STORMS),--storms $(STORMS)) $(if $(SEED),--seed $(SEED))

e2e: $(VENV)/dev.done $(LOCALSTACK)/runtime.done $(if $(AWS_ENDPOINT_URL),,$(LOCALSTACK)/done)  ## deploy to LocalStack and use it; AWS_ENDPOINT_URL names a running one
	$(BIN)/python -m pytest tests/e2e/localstack

simulate: $(VENV)/dev.done  ## run the AWS side in simulated time, at full size, and print its lateness
	$(BIN)/python -m tools.simulation

bench-lambda: $(VENV)/dev.done $(LOCALSTACK)/runtime.done  ## measure what each function takes to start and to work, into docs/benchmarks.md
	$(BIN)/python -m bench.cold_start

bench: $(BENCH)/done  ## measure Timers beside Celery + Redis and BullMQ and write docs/benchmarks.md (ROUNDS)
	@$(BENCH)/venv/bin/python -m bench $(if $(ROUNDS),--rounds $(ROUNDS))

soak: $(BENCH)/done  ## serve for half an hour, hold memory, files and latency to be flat (MINUTES, RATE creates a second)
	@$(BENCH)/venv/bin/python -m bench.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RATE),--rate $(RATE))

deploy: stage $(VENV)/deploy.done  ## deploy into an AWS account, STAGE=dev or prod (TOPIC, RATE, BURST, POLLERS)
	@$(BIN)/python -m infra.deploy deploy $(STAGE) $(if $(TOPIC),--topic "$(TOPIC)") $(if $(RATE),--rate $(RATE)) $(if $(BURST),--burst $(BURST)) $(if $(POLLERS),--pollers $(POLLERS))

destroy: stage $(VENV)/deploy.done  ## take a stage away, its timers included, STAGE=dev
	@$(BIN)/python -m infra.deploy destroy $(STAGE)

key keys revoke secrets: $(VENV)/$(if $(STAGE),deploy,run).done

key:  ## make an API key and print it (STAGE, else this machine; TENANT, ROLE=full or read)
	@$(TENANTS) add $(if $(TENANT),--tenant "$(TENANT)") $(if $(ROLE),--role "$(ROLE)")

keys:  ## list the API keys (STAGE, else this machine)
	@$(TENANTS) list

revoke: named  ## make an API key open nothing any more, KEY=… (STAGE, else this machine)
	@$(TENANTS) revoke "$(KEY)"

secrets:  ## print what webhooks are signed with (STAGE, else this machine; TENANT, ADD=new, RETIRE=whsec_…)
	@$(TENANTS) secrets $(if $(TENANT),--tenant "$(TENANT)") $(if $(ADD),--add "$(ADD)") $(if $(RETIRE),--retire "$(RETIRE)")

localstack:  ## run Timers on LocalStack in Docker (PRECISION=60 for schedules as coarse as AWS's)
	@command -v docker > /dev/null || { echo "Docker is missing; without it there is \`make e2e\`." >&2; exit 1; }
	docker compose -f docker-compose.localstack.yml up --build --detach --wait localstack schedule-runner
	@docker compose -f docker-compose.localstack.yml logs --no-log-prefix deploy | tail -5

localstack-down:  ## end that, and forget its timers
	docker compose -f docker-compose.localstack.yml down

stage:
	@test -n "$(STAGE)" || { echo "Say which stage: make $(MAKECMDGOALS) STAGE=dev" >&2; exit 1; }

named:
	@test -n "$(KEY)" || { echo "Say which key: make revoke KEY=…; make keys lists them" >&2; exit 1; }

clean:  ## remove what the other commands made; not your timers in .data/
	rm -rf $(VENV) $(LOCALSTACK) $(BENCH) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.done: requirements-run.txt requirements.txt | $(BIN)/python
	@echo "Installing what Timers needs …" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)/deploy.done: requirements-deploy.txt requirements-run.txt requirements.txt | $(BIN)/python
	@echo "Installing what deploying needs …" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@ $(VENV)/run.done

$(VENV)/dev.done: requirements-dev.txt requirements-deploy.txt requirements-run.txt requirements.txt | $(BIN)/python
	@echo "Installing what the tests need …" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@ $(VENV)/deploy.done $(VENV)/run.done

# What judges the pages' accessibility; without npm these tests are skipped.
$(AXE): | $(BIN)/python
	@if command -v npm > /dev/null; then echo "Installing axe-core …" >&2; \
	npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix $(VENV) axe-core@4.14.1; fi

# LocalStack wants libraries of its own age, and functions see nothing but what Lambda has.
$(LOCALSTACK)/done: tests/e2e/localstack/constraints.txt | $(BIN)/python
	@echo "Installing LocalStack …" >&2
	@rm -rf $(LOCALSTACK)/venv
	@$(BIN)/python -m venv $(LOCALSTACK)/venv
	@$(LOCALSTACK)/venv/bin/python -m pip install --quiet --disable-pip-version-check -c $< "localstack-core[runtime]==4.9.2"
	@mkdir -p $(LOCALSTACK)/venv/usr/lib/localstack  # for its catalog of AWS's calls, which takes 10 s to make
	@FILESYSTEM_ROOT=$(LOCALSTACK)/venv OVERRIDE_IN_DOCKER=0 $(LOCALSTACK)/venv/bin/python -m localstack.aws.spec > /dev/null
	@touch $@

$(LOCALSTACK)/runtime.done: tests/e2e/localstack/runtime-requirements.txt | $(BIN)/python
	@echo "Installing what Lambda has …" >&2
	@$(BIN)/python -m venv --clear $(LOCALSTACK)/runtime
	@$(LOCALSTACK)/runtime/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# What npm does not give is left out, and `make bench` says so.
$(BENCH)/done: bench/requirements.txt bench/package.json bench/package-lock.json requirements-run.txt requirements.txt | $(BIN)/python
	@command -v node > /dev/null || { echo "node is missing: the receiver needs it (on Debian and Ubuntu: apt-get install nodejs npm)." >&2; exit 1; }
	@echo "Installing what is measured …" >&2
	@rm -rf $(BENCH)
	@$(BIN)/python -m venv $(BENCH)/venv
	@$(BENCH)/venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@cp bench/package.json bench/package-lock.json $(BENCH)/
	@npm ci --prefix $(BENCH) --no-audit --no-fund --silent || true
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Timers needs Python 3.11 or newer; say which with: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "Python's venv module is missing: install it (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
