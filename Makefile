# One command each: `make demo` to see it work, `make test` for people and CI alike.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where PyTorch's build is taken from, if not from the package index: README.md names the index of CPU builds.
TORCH_INDEX ?=

.PHONY: setup demo test check lint types unit slow real browser lowest test-clients test-vllm docs site dist replicate clean

setup: $(STAMP)

# Done again only when the lock or the project file changed.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Poise needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) $$(grep '^torch==' requirements.lock))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/poise demo

test: setup lint types unit real

check: test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "not real and not wide and not slow and not trainers and not browser and not vllm"

# What kills processes, compiles, simulates, builds architectures and tries every trainer; not part of `make test`, and run by CI after it.
slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal -m "(slow or trainers) and not real and not wide and not browser and not vllm"

real: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "(real or wide) and not browser and not vllm"

# Steering and reading inside vLLM, in an environment of its own; run by CI at the end.
TEST_VLLM := .venv-vllm
test-vllm:
	test -x $(TEST_VLLM)/bin/python || $(PYTHON) -m venv $(TEST_VLLM)
	$(TEST_VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-vllm.txt
	$(TEST_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(TEST_VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	OMP_NUM_THREADS=1 $(TEST_VLLM)/bin/pytest -q -m vllm $(wildcard tests/test_vllm_*.py)

# Needs Chromium, and Firefox for one file; not part of `make test`, and run by CI after it.
browser: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m browser

# Training on the lowest versions of transformers, TRL and PEFT that are allowed, in an environment of its own; run by CI.
LOWEST := .venv-lowest
lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(if $(TORCH_INDEX),$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) $$(grep '^torch==' requirements-lowest.txt))
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest -q -n 2 --dist loadfile -m "not slow and not real" tests/test_vaccine*.py tests/test_train*.py

# The clients that people have, against a tiny model: each package in an environment of its own, without Poise; run by CI.
CLIENTS := .venv-clients
NODE := tests/clients/node
test-clients: setup
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-clients.txt
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps instructor==1.17.0  # wants an older jiter
	@if command -v npm >/dev/null; then cd $(NODE) && npm install --no-package-lock --no-audit --no-fund --silent; \
	else echo "npm is not installed: the clients for JavaScript will be skipped."; fi
	cd tests/clients && POISE_PYTHON=$(abspath $(BIN))/python ../../$(CLIENTS)/bin/python -m pytest -q -c pytest.ini -m clients .

docs: setup
	$(BIN)/python docs/generate_cli.py

# These pages and the reference of the Python API as a site, every link checked; needs no network.
site: setup
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "Written: docs/_build/index.html"

# A wheel and a source archive, and a look at the wheel from outside.
dist: setup
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python packaging/check_wheel.py dist/poise-*.whl

# The paper's fine-tuning experiments on a model of yours: make replicate MODEL=... DATA=... [JUDGE=endpoint:NAME]
MODEL ?= smollm2-135m
DATA ?= ../shared/data
JUDGE ?= exemplars
REPLICATE ?= runs/$(notdir $(MODEL))

replicate: setup
	$(BIN)/python -W ignore benchmarks/replicate.py --model $(MODEL) --data $(DATA) --judge $(JUDGE) --out $(REPLICATE)

clean:
	rm -rf $(VENV) $(LOWEST) $(CLIENTS) $(NODE)/node_modules $(TEST_VLLM) docs/_build docs/reference dist .mypy_cache .pytest_cache .ruff_cache
