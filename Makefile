# Each target sets up what it needs by itself, and again only when the lists of requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes that share the tests, a file of tests at a time, so that what a file sets up once is set up once.
PROCESSES ?= 2

.PHONY: setup demo test test-full lint coverage clean

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $(READY)

demo: $(READY)
	$(BIN)/python MPL.py --name demo --overwrite --seed 0 --show_images
	$(BIN)/python MPL.py --name demo-labels-only --overwrite --seed 0 --finetune_mode

test: $(READY)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m "not slow"

test-full: $(READY)
	$(BIN)/python -m pytest -m "slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Of this process alone: runs that the tests start or fork are not counted.
coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --sort=cover

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
