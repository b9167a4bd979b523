# Two commands matter: `make demo` and `make test`. Both set up .venv from pinned versions first.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PROCESSES ?= 2
export PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1

.PHONY: demo test test-all setup setup-dev lint chaos bench bench-gpu ui docs image-check clean

demo: $(VENV)/.run  ## capture a real encoder, find its subspaces, write the report
	$(BIN)/subspan run examples/demo.yaml $(ARGS)

test: $(VENV)/.dev  ## the fast tests
	$(call pytest,not slow and)

test-all: $(VENV)/.dev  ## every test
	$(call pytest)

# Files are dealt to processes; tests marked `alone` follow in one. 5: ARGS ask for none of these tests.
define pytest
@failed=0; \
$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m "$(1) not alone" $(ARGS) || test $$? -eq 5 || failed=1; \
$(BIN)/python -m pytest -m "$(1) alone" $(ARGS) || test $$? -eq 5 || failed=1; \
exit $$failed
endef

setup: $(VENV)/.run  ## the environment with the `subspan` command in it
	@echo "ready: $(BIN)/subspan --help"

setup-dev: $(VENV)/.dev

lint: $(VENV)/.dev  ## ruff, strict types, and an audit of what is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.audit

chaos: $(VENV)/.dev  ## 200 seeded scenarios of kills, full disks, shifted clocks; ARGS="--scenarios 20 --seed 7"
	$(BIN)/python -m tests.chaos $(ARGS)

bench: $(VENV)/.dev  ## side by side with peers, each in its own environment below .bench/
	$(BIN)/python -m benchmarks $(ARGS)

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks --gpu $(ARGS)

ui: $(VENV)/.run  ## Prefect server on loopback, the deployments and a worker
	$(BIN)/python -m pipelines.ui $(ARGS)

image-check: $(VENV)/.dev  ## the steps of deploy/Dockerfile in a new environment, without a Docker engine
	$(BIN)/python -m tests.replay_dockerfile

docs: $(VENV)/.run  ## the pages that are made from the code
	$(BIN)/python -m pipelines.methods_page
	$(BIN)/python -m pipelines.options_page

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.in constraints.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.in -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt -e .
	@$(BIN)/python -c "import torch; print('torch', torch.__version__, '' if '+cpu' in torch.__version__ else '(default build: with its CUDA packages several GB)')"
	@touch $@

$(VENV)/.dev: requirements-dev.in $(VENV)/.run
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.in -c constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
