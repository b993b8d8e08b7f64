# Everything a newcomer needs: `make demo` and `make test`. Both set up .venv first.
#
#   PYTHON=python3.12   the interpreter that makes .venv (3.11 or newer); after a change: make clean setup PYTHON=...
#
# pip's own variables hold: on Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu brings torch without
# CUDA, several gigabytes smaller.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test demo format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VERSION_OK := import sys; sys.exit(sys.version_info < (3, 11))

help: ## show this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: $(STAMP) ## make .venv with everything in it; skipped when nothing changed

test: setup ## lint, check types, run all tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

demo: setup ## train a small model, export it, translate; then the same with the trained one in this repository
	$(BIN)/python examples/demo/demo.py

format: setup ## format the code and apply the linter's safe fixes
	$(BIN)/python -m ruff check --fix --exit-zero --quiet .
	$(BIN)/python -m ruff format .

clean: ## remove .venv, build outputs and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name '*.egg-info' -prune -exec rm -rf {} +
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last: a setup that failed half-way is done again. torch is installed by its exact version in a
# call of its own, so that no extra can pull in another one first.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@command -v $(PYTHON) >/dev/null || { \
	  echo "edgeseq: '$(PYTHON)' was not found; install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(VERSION_OK)' || { \
	  echo "edgeseq: needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name a newer one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -c '$(VERSION_OK); import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "edgeseq: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@
