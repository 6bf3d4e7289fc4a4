# Every target makes what it needs; `make setup` is redone only when its inputs change.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ladle-setup

.PHONY: setup quickstart test test-all check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" wheel
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

quickstart: setup
	$(BIN)/ladle run recipes/quickstart.yaml

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadgroup

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadgroup
	OMP_NUM_THREADS=2 $(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf runs
