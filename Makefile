# The commands of this project; each makes what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check simulate clean

run: $(VENV)/run.done  ## serve Timers on http://127.0.0.1:8000 (PORT, HOST, TIMERS_DB, ALLOWED_TARGETS)
	@exec $(BIN)/python -m embedded

test: $(VENV)/dev.done  ## run all tests
	$(BIN)/python -m pytest

check: $(VENV)/dev.done  ## lint, format, types, then all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(MAKE) --no-print-directory test

simulate: $(VENV)/dev.done  ## run the AWS side in simulated time, at full size, and print its lateness
	$(BIN)/python -m tests.simulation

clean:  ## remove what the other commands made; not your timers in .data/
	rm -rf $(VENV) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.done: requirements-run.txt requirements.txt | $(BIN)/python
	@echo "Installing what Timers needs …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)/dev.done: requirements-dev.txt requirements-run.txt requirements.txt | $(BIN)/python
	@echo "Installing what the tests need …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@ $(VENV)/run.done

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Timers needs Python 3.11 or newer; say which with: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "Python's venv module is missing: install it (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
