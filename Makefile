# Each target makes .venv when it is missing. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint fuzz

demo: $(INSTALLED)
	$(BIN)/rightreasons demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

# How many inputs each reader gets; CI gives 15.
FUZZ_EXAMPLES ?= 500

fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/data/test_fuzz.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@
