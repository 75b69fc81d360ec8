# Everything happens in a virtual environment of its own; a second call re-uses it.
#
#   PYTHON       the interpreter that the environment is made from (3.11 or newer)
#   VENV         the folder of the environment
#   TORCH_INDEX  a further package index to take torch from, for a build without CUDA:
#                make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

# RLlib asks for one exact version of Gymnasium, an older one than constraints.txt names.
RLLIB_VENV ?= .venv-rllib

# trl's PPO, which a benchmark compares with, asks for a transformers that is too old for textgym.
TRL_VENV ?= .venv-trl

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
RLLIB_BIN := $(RLLIB_VENV)/bin
RLLIB_PIP_INSTALL := $(RLLIB_BIN)/python -m pip install --quiet --constraint constraints-rllib.txt
TRL_BIN := $(TRL_VENV)/bin
TRL_PIP_INSTALL := $(TRL_BIN)/python -m pip install --quiet --constraint constraints-trl.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev demo test lint format models clean
.PHONY: rllib-env rllib-example rllib-test trl-env

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "textgym needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: it may come from an index of its own.
$(VENV)/.torch: constraints.txt $(VENV)/.created
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## Install textgym into the environment

install-dev: $(VENV)/.installed-dev  ## Install textgym with what its development needs

demo: install  ## Train with sparse reward, credit and shaping, and compare them
	$(BIN)/textgym demo

lint: install-dev  ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint  ## Check style, formatting and types, and run the tests
	$(BIN)/pytest

format: install-dev  ## Repair style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

models: install-dev  ## Train the embedded models anew (hours); resumes after a stop
	$(BIN)/python -m textgym.models.build

$(RLLIB_VENV)/.torch: constraints-rllib.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "textgym needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(RLLIB_VENV)
	$(RLLIB_PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

# captum and hypothesis are for the tests.
$(RLLIB_VENV)/.installed: pyproject.toml $(RLLIB_VENV)/.torch
	$(RLLIB_PIP_INSTALL) "ray[rllib]" --editable ".[attribution]" pytest hypothesis
	@touch $@

rllib-env: $(RLLIB_VENV)/.installed  ## Install textgym and RLlib into an environment of their own

rllib-example: rllib-env  ## Train RLlib's PPO
	$(RLLIB_BIN)/python examples/rllib_ppo.py

rllib-test: rllib-env  ## Test the environments and the example with RLlib's versions
	$(RLLIB_BIN)/python -m pytest tests/test_rllib.py tests/envs tests/wrappers

$(TRL_VENV)/.torch: constraints-trl.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "trl 0.7.4 needs Python 3.11 or 3.12 here; name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

# Without textgym, which needs a newer transformers: the benchmark hands over weights and prompts.
$(TRL_VENV)/.installed: $(TRL_VENV)/.torch
	$(TRL_PIP_INSTALL) trl
	@touch $@

trl-env: $(TRL_VENV)/.installed  ## Install trl 0.7.4 into an environment of its own, to compare with

clean:  ## Remove the environments and all caches
	rm -rf $(VENV) $(RLLIB_VENV) $(TRL_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find textgym agents tests -name __pycache__ -type d -prune -exec rm -rf {} +
