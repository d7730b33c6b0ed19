# make help lists the targets. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
LATEST ?=
# One environment per Python and choice of versions.
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))$(if $(LATEST),-latest)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKDIR := runs/quickstart
# One process per core; the tests of a file stay together, for the fixtures that they share.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Tests start many processes, and each would compile all sources again.
export PYTHONDONTWRITEBYTECODE :=

TOO_OLD := import sys; sys.exit(sys.version_info < (3, 11) and \
	"memjax needs Python 3.11 or newer; " + sys.executable + " is %d.%d. " % sys.version_info[:2]

.PHONY: help env quickstart test test-beam slow night check docs clean

help:
	@echo "make quickstart   train a memory model from text to report, in $(WORKDIR)"
	@echo "make test         lint, formatting, types and tests, in minutes"
	@echo "make test-beam    the tests of preparation by Apache Beam, in $(VENV)/beam"
	@echo "make slow         the tests marked slow, which CI runs too"
	@echo "make night        the tests marked night: damage and soak runs"
	@echo "make docs         the site, in build/site, from docs/ and docstrings"
	@echo "make env          only the environment, in $(VENV)"
	@echo "make clean        remove the environment and caches; runs/ stays"
	@echo
	@echo "PYTHON=...        the Python of the environment (3.11 or newer; now $(PYTHON))"
	@echo "LATEST=1          the newest versions that setup.py allows, not those of requirements.txt"

quickstart: $(READY)
	$(BIN)/memjax train --config=configs/quickstart.py --workdir=$(WORKDIR)

test: check
	$(PYTEST) -m "not slow and not night"

slow: $(READY)
	$(PYTEST) -m "slow and not night"

night: $(READY)
	$(PYTEST) -m night

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# An environment of its own: Beam needs older packages than memjax is tested with. Beam's own
# warnings are no errors.
test-beam: $(VENV)/beam/.ready
	$(VENV)/beam/bin/python -m pytest tests/beam --confcutdir=tests/beam -W default --disable-warnings

$(VENV)/beam/.ready: tests/beam/requirements.txt
	@"$(PYTHON)" -m venv $(VENV)/beam
	@$(VENV)/beam/bin/python -m pip install -qq -r tests/beam/requirements.txt
	@touch $@

# An environment of its own: the site is built from sources alone.
docs: $(VENV)/docs/.ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --quiet
	@echo "The site is in build/site. With search: python3 -m http.server --directory build/site"

$(VENV)/docs/.ready: docs/requirements.txt
	@"$(PYTHON)" -m venv $(VENV)/docs
	@$(VENV)/docs/bin/python -m pip install -qq -r docs/requirements.txt
	@touch $@

env: $(READY)

# Rebuilt when a version changes. The package is linked, not copied: its sources need no rebuild.
$(READY): requirements.txt setup.py
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "memjax needs Python 3.11 or newer; there is no $(PYTHON) here. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c '$(TOO_OLD) + "Name another: make PYTHON=/path/to/python3")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -c '$(TOO_OLD) + "Run make clean first.")'
	@echo "Installing into $(VENV); the first time takes a minute or two."
ifeq ($(LATEST),)
	@$(BIN)/python -m pip install -qq -r requirements.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
else
	@$(BIN)/python -m pip install -qq --upgrade "setuptools>=77.0"
	@$(BIN)/python -m pip install -qq --upgrade --upgrade-strategy=eager --no-build-isolation -e ".[dev]"
	@$(BIN)/python -m pip list --format=freeze | grep -iE "^(jax|jaxlib|flax|optax|orbax-checkpoint|grain|numpy)=="
endif
	@touch $@

clean:
	rm -rf .venv .venv-* build dist memjax.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
