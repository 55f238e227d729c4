# Everything one does in this repository, one target each. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
PEERS_VENV := .venv-peers
# What `make test-peers` compares with; clip-anytorch packages OpenAI's code. torchvision is the release that belongs to the torch in constraints.txt.
PEERS := open_clip_torch==3.3.0 torchvision==0.28.0 clip-anytorch==2.6.0
# It has the 8-bit optimizer, and lies apart: where transformers finds it, every start imports it, with seconds and warnings.
TORCHAO := $(PEERS_VENV)/torchao

# The folder of real test data (CONTRIBUTING.md). Tests that need it are skipped where there is none.
CLIP_HF_TEST_DATA ?= $(abspath $(wildcard ../shared/data))
export CLIP_HF_TEST_DATA

PIP_INSTALL := -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# One process per core and one thread per process: torch's threads would otherwise fight for the same cores.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)/bin/python -m pytest
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu test-peers check style card benchmark constraints clean

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=python3.12 chooses the interpreter of a new environment (3.11 or newer)."

install: $(VENV)/.installed  ## Create .venv with the package and all that its tests need
	@echo "$(VENV) is ready."

demo: $(VENV)/.installed  ## Train, evaluate, save and use a small CLIP on this machine
	@$(VENV)/bin/python scripts/demo.py

test: $(VENV)/.installed  ## Run the tests that need neither a GPU nor minutes
	@$(PYTEST) $(PARALLEL)

test-slow: $(VENV)/.installed  ## Run the tests that take minutes
	@$(PYTEST) $(PARALLEL) -m "slow and not peers and not gpu and not multi_gpu"

test-gpu: $(VENV)/.installed  ## Run the tests that need CUDA devices
	@$(VENV)/bin/python -m pytest -m "gpu or multi_gpu"

test-peers: $(PEERS_VENV)/.installed  ## Compare with OpenCLIP, OpenAI's code, torchvision and torchao, in .venv-peers
	@$(PEERS_VENV)/bin/python -m pip list --disable-pip-version-check | grep -E "^(open_clip|clip-any|tim|torch|transformers|clip_hf)"
	@$(PEERS_VENV)/bin/python -m pytest -m "peers or not (slow or gpu)" tests/peers tests/model/test_image_processing_clip_hf.py
	@PYTHONPATH=$(TORCHAO) $(PEERS_VENV)/bin/python -m pytest -m peers tests/training/test_trainer.py tests/training/test_tower_locks.py

check: $(VENV)/.installed  ## Check style, types, spelling and the repository's own rules
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/typos
	@$(PYTEST) $(PARALLEL) tests/repository

style: $(VENV)/.installed  ## Repair what ruff can repair
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format

card: $(VENV)/.installed  ## Render every page of model_cards from the JSON beside it
	@$(VENV)/bin/python scripts/render_model_cards.py

benchmark: $(PEERS_VENV)/.installed  ## Measure beside OpenCLIP and transformers, in .venv-peers: two to three hours on two cores
	@for script in scripts/benchmarks/*.py; do \
		echo "$$script"; $(PEERS_VENV)/bin/python "$$script" || failed="$$failed $$script"; \
	done; \
	$(PEERS_VENV)/bin/python scripts/render_benchmarks.py || exit 1; \
	test -z "$$failed" || { echo "these failed:$$failed"; exit 1; }

constraints: $(VENV)/.installed  ## Write the versions that .venv now holds to constraints.txt
	@$(VENV)/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed "s/+.*//" > constraints.txt

clean:  ## Delete the environments, caches and build products
	rm -rf $(VENV) $(PEERS_VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone, so that no later requirement can choose another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV); the first time takes minutes."
	@$(VENV)/bin/python $(PIP_INSTALL) torch
	@$(VENV)/bin/python $(PIP_INSTALL) --editable ".[test]"
	@touch $@

$(PEERS_VENV)/.installed: pyproject.toml constraints.txt Makefile | $(PEERS_VENV)/bin/python
	@echo "Installing into $(PEERS_VENV); the first time takes minutes."
	@$(PEERS_VENV)/bin/python $(PIP_INSTALL) torch torchvision==0.28.0
	@$(PEERS_VENV)/bin/python $(PIP_INSTALL) $(PEERS) pytest pytest-timeout --editable ".[train,eval]"
	@$(PEERS_VENV)/bin/python $(PIP_INSTALL) --no-deps --upgrade --target $(TORCHAO) torchao==0.18.0
	@touch $@

$(VENV)/bin/python $(PEERS_VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and '$(PYTHON) is Python ' + sys.version.split()[0] \
		+ '; clip_hf needs 3.11 or newer: name one, for example PYTHON=python3.12')"
	@$(PYTHON) -m venv $(@D:/bin=)
