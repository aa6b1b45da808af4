# Each target makes .venv when it is missing. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check lint docs fuzz mutants

demo: $(INSTALLED)
	$(BIN)/rightreasons demo

# Tests run in one process more than there are cores, since many wait for a server; four at most, each on one thread.
# COVERAGE=1 measures branches and holds their floor. Compiled files are kept even where a container forbids it: each of the many processes that are
# started would compile the package anew.
WORKERS = $(shell $(BIN)/python -c "import os; print(min(4, os.cpu_count() + 1))")

ifdef COVERAGE
MEASURED := --cov --cov-report=term:skip-covered
endif

test: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(MEASURED)

# Before each commit, under 30 seconds: lint, the types of the sources that are not committed yet, and the direction of imports.
CHANGED = git diff --name-only --diff-filter=d HEAD -- 'src/*.py'; git ls-files --others --exclude-standard -- 'src/*.py'

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@changed=$$($(CHANGED)); if [ -n "$$changed" ]; then $(BIN)/pyright $$changed; fi
	$(BIN)/python -m pytest tests/test_architecture.py

# How many inputs each reader gets; CI gives 15.
FUZZ_EXAMPLES ?= 500

fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/data/test_fuzz.py

# Small faults put into the ledger, votes, splits and masks one at a time: the tests must see each. An hour on two cores; survivors are listed.
# The path is for couriers, which would import the tree without faults. It has to be there at the start, since Python remembers what was not.
mutants: $(INSTALLED)
	mkdir -p mutants/src
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/mutants/src $(BIN)/mutmut run
	$(BIN)/mutmut results

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --threads

# The site, in site/. Not with --quiet: it would hide the warnings that --strict makes errors of.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.docs: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@
