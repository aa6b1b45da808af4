# Each target makes .venv when it is missing. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check lint docs fuzz

demo: $(INSTALLED)
	$(BIN)/rightreasons demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

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

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

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
