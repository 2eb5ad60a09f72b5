# make setup | demo | test | test-slow | check | format | release
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
WEIGHTS_DIR ?= demo
TRAINED_ON ?= $(if $(filter demo,$(WEIGHTS_DIR)),synthetic,)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-slow check format release

setup: $(VENV)/installed

# The pinned torch comes first, so that no other package pulls a torch of its own.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,release]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py --output demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From the weights of `make demo`, or WEIGHTS_DIR=... and TRAINED_ON="a sentence for the model cards"; into dist/.
release: setup
	$(BIN)/python -m custom.release all --weights_dir '$(WEIGHTS_DIR)' --trained_on '$(TRAINED_ON)'
