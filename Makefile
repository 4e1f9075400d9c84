# Each target creates .venv and installs what it needs, so any of them may be the first command typed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
DEV := .venv/dev

.PHONY: demo test check bench pacing clean

$(READY): pyproject.toml
	@echo "setting up .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@$(BIN)/python -m compileall -q batchrouter  # not on the first command's time, or on each where nothing may be written
	@touch $@

$(DEV): $(READY)
	@echo "installing what tests and checks need (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)  ## run the samples against the embedded emulator
	$(BIN)/batchrouter run samples/*.jsonl --emulate -o demo.run

test: $(DEV)  ## the tests
	@$(BIN)/python -m pytest

check: $(DEV)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(DEV)  ## measured against a bare aiohttp loop in the same run
	$(BIN)/python -m tests.bench

pacing: $(DEV)  ## how the pace compares with others, in the simulator
	PYTHONPATH=tests $(BIN)/python -m kit.comparison

clean:
	rm -rf .venv build dist demo.run .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
