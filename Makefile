# Each target sets up what it needs by itself, and again only when pyproject.toml, the list of requirements, changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The package by its name, for mypy: a checkout's folder may be called anything.
TYPES := $(VENV)/types
# Processes that share the tests, a file of tests at a time, so that what a file sets up once is set up once.
PROCESSES ?= 2

# What stands in the way of an environment, in one line; nothing where all is there.
define OBSTACLE
$(shell command -v $(PYTHON) > /dev/null || { echo "there is no $(PYTHON): apt install python3-venv"; exit; }; \
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
		|| { echo "$(PYTHON) is too old, 3.11 is needed: make PYTHON=python3.12"; exit; }; \
	$(PYTHON) -c "import ensurepip, venv" 2> /dev/null \
		|| echo "$(PYTHON) has no venv: apt install python3-venv")
endef

.PHONY: setup demo test test-full lint coverage clean

setup: $(READY)

$(READY): pyproject.toml
	$(if $(OBSTACLE),$(error $(OBSTACLE)))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) > /dev/null \
		|| { rm -rf $(VENV); echo "$(PYTHON) -m venv failed: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --editable '.[dev]'
	@touch $(READY)
	@echo "ready: $(BIN)/python MPL.py --help"

demo: $(READY)
	$(BIN)/python MPL.py --name demo --overwrite --seed 0 --show_images
	$(BIN)/python MPL.py --name demo-labels-only --overwrite --seed 0 --finetune_mode

test: $(READY)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m "not slow"

test-full: $(READY)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m "slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(TYPES) && ln -sfn ../.. $(TYPES)/transfermpl
	cd $(TYPES) && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

# Of this process alone: runs that the tests start or fork are not counted.
coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --sort=cover

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
