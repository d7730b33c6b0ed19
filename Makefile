# make help lists what there is. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKDIR := runs/quickstart
# A process for each core; a file's tests stay together, for what they share.
WORKERS := --numprocesses=auto --dist=loadfile

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

TOO_OLD := import sys; sys.exit(sys.version_info < (3, 11) and \
	"memjax needs Python 3.11 or newer; " + sys.executable + " is %d.%d. " % sys.version_info[:2]

.PHONY: help env quickstart test test-all check clean

help:
	@echo "make quickstart   train a memory model from text to report, in $(WORKDIR)"
	@echo "make test         lint, formatting, types and tests"
	@echo "make test-all     the same with the tests marked slow"
	@echo "make env          only the environment, in $(VENV)"
	@echo "make clean        remove the environment and caches; runs/ stays"
	@echo
	@echo "PYTHON=...        the Python to make the environment with (3.11 or newer; now $(PYTHON))"

quickstart: $(READY)
	$(BIN)/memjax train --config=configs/quickstart.py --workdir=$(WORKDIR)

test: check
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-all: check
	$(BIN)/python -m pytest $(WORKERS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

env: $(READY)

# Rebuilt when a version changes. The package is linked, not copied: its sources need no rebuild.
$(READY): requirements.txt setup.py
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "memjax needs Python 3.11 or newer; there is no $(PYTHON) here. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c '$(TOO_OLD) + "Name another: make PYTHON=/path/to/python3")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -c '$(TOO_OLD) + "Run make clean first.")'
	@echo "Installing into $(VENV); the first time takes a minute or two."
	@$(BIN)/python -m pip install -qq -r requirements.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) build dist memjax.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
