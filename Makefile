# Every target works in a virtual environment, which is made on first use and kept.
#
#   PYTHON       the interpreter for new environments, 3.11 or newer
#   VENV         the folder of the environment
#   TEST_JOBS    processes that run tests, of one thread and some 2 GB each
#   TORCH_INDEX  one more package index to take torch from, such as the one for builds without CUDA:
#                make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TEST_JOBS ?= 2
TORCH_INDEX ?=

# The oldest versions that pyproject.toml allows.
LOWEST_VENV ?= .venv-lowest

# RLlib requires one exact version of Gymnasium, older than the one in constraints.txt.
RLLIB_VENV ?= .venv-rllib

# A benchmark compares with the PPO of trl 0.7.4, whose transformers is too old for textgym.
TRL_VENV ?= .venv-trl

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
LOWEST_BIN := $(LOWEST_VENV)/bin
LOWEST_PIP_INSTALL := $(LOWEST_BIN)/python -m pip install --quiet --constraint constraints-lowest.txt
RLLIB_BIN := $(RLLIB_VENV)/bin
RLLIB_PIP_INSTALL := $(RLLIB_BIN)/python -m pip install --quiet --constraint constraints-rllib.txt
TRL_BIN := $(TRL_VENV)/bin
TRL_PIP_INSTALL := $(TRL_BIN)/python -m pip install --quiet --constraint constraints-trl.txt

# torch goes first and by itself, because it may come from another index.
TORCH := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch

# $(call require_python,OLDEST,NEWEST) stops unless Python 3.OLDEST to 3.NEWEST is at hand.
require_python = $(PYTHON) -c 'import sys; sys.exit(None if (3, $(1)) <= sys.version_info < (3, $(2) + 1) else "This needs Python 3.$(1)$(if $(filter 99,$(2)), or newer,$(if $(filter $(1),$(2)),, to 3.$(2))). Name one: make PYTHON=python3.$(1) ...")'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev demo lint test format wheel-test test-lowest kill-test soak models clean
.PHONY: rllib-env rllib-example rllib-test trl-env
.PHONY: docs docs-pages docs-serve tutorials

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.created:
	@$(call require_python,11,99)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: constraints.txt $(VENV)/.created
	$(PIP_INSTALL) $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed-dev
	$(PIP_INSTALL) --editable ".[docs]"
	@touch $@

install: $(VENV)/.installed  ## Install textgym

install-dev: $(VENV)/.installed-dev  ## Install textgym and the tools to develop it

demo: install  ## Train with sparse reward, ABC and causal shaping, and compare them
	$(BIN)/textgym demo

lint: install-dev  ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tests/packaging/check_types.py .mypy_cache/check_types

test: lint  ## Do what lint does, then run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_JOBS) --dist loadfile

format: install-dev  ## Fix style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel-test: install-dev  ## Build the wheel, and try it in a fresh environment
	$(BIN)/python tests/packaging/try_wheel.py $(TORCH_INDEX)

$(LOWEST_VENV)/.torch: constraints-lowest.txt
	@$(call require_python,11,11)
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_PIP_INSTALL) $(TORCH)
	@touch $@

$(LOWEST_VENV)/.installed: pyproject.toml $(LOWEST_VENV)/.torch
	$(LOWEST_PIP_INSTALL) --editable ".[test]"
	@touch $@

test-lowest: $(LOWEST_VENV)/.installed  ## Run the tests with the oldest allowed versions
	OMP_NUM_THREADS=1 $(LOWEST_BIN)/pytest -n $(TEST_JOBS) --dist loadfile

kill-test: install-dev  ## Kill training runs at random moments, and compare what comes out (20 minutes)
	$(BIN)/python benchmarks/kills.py --output build/kills

soak: install-dev  ## Play 100,000 episodes, and see that memory stays flat (30 minutes)
	$(BIN)/python benchmarks/soak.py --output build/soak

models: install-dev  ## Train the embedded models again (takes hours, resumes after a stop)
	$(BIN)/python -m textgym.models.build

$(RLLIB_VENV)/.torch: constraints-rllib.txt
	@$(call require_python,11,99)
	$(PYTHON) -m venv $(RLLIB_VENV)
	$(RLLIB_PIP_INSTALL) $(TORCH)
	@touch $@

# The tests need captum and hypothesis.
$(RLLIB_VENV)/.installed: pyproject.toml $(RLLIB_VENV)/.torch
	$(RLLIB_PIP_INSTALL) "ray[rllib]" --editable ".[attribution]" pytest hypothesis
	@touch $@

rllib-env: $(RLLIB_VENV)/.installed  ## Install textgym and RLlib in their own environment

rllib-example: rllib-env  ## Train RLlib's PPO
	$(RLLIB_BIN)/python examples/rllib_ppo.py

rllib-test: rllib-env  ## Test the environments and the example with RLlib's versions
	$(RLLIB_BIN)/python -m pytest tests/test_rllib.py tests/envs tests/wrappers

$(TRL_VENV)/.torch: constraints-trl.txt
	@$(call require_python,11,12)
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_PIP_INSTALL) $(TORCH)
	@touch $@

# textgym stays out, because it needs a newer transformers. The benchmark passes weights and prompts.
$(TRL_VENV)/.installed: $(TRL_VENV)/.torch
	$(TRL_PIP_INSTALL) trl
	@touch $@

trl-env: $(TRL_VENV)/.installed  ## Install trl 0.7.4 in its own environment, for comparisons

docs: $(VENV)/.installed-docs  ## Build the documentation site into build/site
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed-docs  ## Show the site at http://localhost:8000 while you write
	$(BIN)/mkdocs serve

tutorials: install-dev  ## Run the notebooks in docs/tutorials, and store what they show
	$(BIN)/python docs/run_tutorials.py

docs-pages: install-dev  ## Make the pages of docs/ that come from the code, and their pictures
	$(BIN)/python docs/generate.py --pictures

clean:  ## Remove the environments, builds and caches
	rm -rf $(VENV) $(LOWEST_VENV) $(RLLIB_VENV) $(TRL_VENV)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find textgym agents tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
