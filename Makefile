# make demo | test | test-slow | test-all | lint | format | docs | bench | clean
#
# Every target makes the virtual environment it needs in .venv, once, with versions of constraints.txt; nothing but make
# and Python (3.11 or later, with pip) has to be there. PYTHON=python3.12 make test takes another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Data sets that are already on this machine; without them the loaders download, and tests that need them skip.
ifneq ($(wildcard ../shared/data/.),)
export BMM_DATA_HOME ?= $(abspath ../shared/data)
endif

PYTEST = $(BIN)/python -m pytest

.PHONY: demo test test-fast test-slow test-all lint format docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/package.stamp
	$(BIN)/bmm-mtl demo

test test-fast: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" -n 2 -q --durations=10 \
		--cov --cov-report=term --cov-report=html:htmlcov
	@echo "Coverage, line by line: htmlcov/index.html"

test-slow: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(PYTEST) -m slow -n 2 -q --durations=10 tests

test-all: test-fast test-slow

lint: $(VENV)/lint.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/lint.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/bench.stamp
	$(BIN)/bmm-mtl benchmark school landmine sentiment sarcos office yeast parkinsons planted unrelated rotated-mnist landmine-trees affinity sharing texts \
		--out docs/benchmarks
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) htmlcov site dist .coverage .pytest_cache .mypy_cache .ruff_cache

# One environment, filled group by group: the demo needs neither pytest nor mkdocs.

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; this is " \
		+ sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/package.stamp: pyproject.toml constraints.txt $(VENV)/made.stamp
	@echo "Installing the package into $(VENV); the first time this takes a minute or two."
	$(PIP) install -q -c constraints.txt -e ".[cli,data,plots]"
	@touch $@

# A group's requirements are those of [dependency-groups] in pyproject.toml; the checks need the other extras too.
$(VENV)/%.stamp: $(VENV)/package.stamp
	$(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(sys.stdin.buffer)["dependency-groups"]["$*"], sep="\n")' \
		<pyproject.toml >$(VENV)/$*.txt
	$(PIP) install -q -c constraints.txt -e ".[text,serve,gradients]" -r $(VENV)/$*.txt
	@touch $@
