# make demo    environment, install, then the whole experiment on the bundled tiny model
# make test    environment, install, then lint, types and tests
# make lint, make types, make unit    one part of `make test`; ARGS goes to pytest
# make clean   remove the environment, the caches and the demo's run
#
# PYTHON chooses the interpreter the environment is made from: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# The recipes below run, and show, plain `python ...` lines: those of the environment.
# (bash, named here, also makes every make look commands up along this PATH.)
SHELL := bash
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	rm -rf runs/demo
	python -m jroute.convert --source jroute/assets/tiny-gated --out runs/demo/model
	python -m jroute.outcomes --config configs/tiny.yaml --replicate 200
	python -m jroute.train --config configs/tiny.yaml
	python scripts/lm_eval_jax.py --run runs/demo --arm baseline,fixed:0.5,random,supervised,rl --tasks test
	python -m jroute.report --run runs/demo

# In this order, cheapest first, even under -j.
test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory types
	$(MAKE) --no-print-directory unit

lint: $(VENV)/.installed-dev
	ruff check
	ruff format --check
	lint-imports

types: $(VENV)/.installed-dev
	pyright

unit: $(VENV)/.installed-dev
	python -m pytest -n 2 --dist loadfile $(ARGS)

clean:
	rm -rf $(VENV) .cache .hypothesis .import_linter_cache .pytest_cache .ruff_cache build dist runs/demo

# A stamp says that a step is complete; an interrupted step runs again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: jroute needs Python 3.11 or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	       "name another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c constraints.txt pip
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.created
	$(PIP) install -c constraints.txt --build-constraint constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.created
	$(PIP) install -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	@touch $(VENV)/.installed $@
