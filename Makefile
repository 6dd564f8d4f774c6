# Everything a newcomer types. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
# Set by the caller to a folder with real clips; tests that want it skip without it.
export PDNET_SHARED
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Imports without bytecode take two to three times as long.
unexport PYTHONDONTWRITEBYTECODE
# Two processes, each with one thread for its tensors: more than that, and they wait for each other.
# A worker that crashes ends the run: xdist may wait for ever for the one that replaces it.
TESTS := OMP_NUM_THREADS=1 python -m pytest -n $(or $(WORKERS),2) --dist loadfile --max-worker-restart=0
# Nothing phones home.
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false

.DEFAULT_GOAL := help
.PHONY: help setup data demo repro ui stack-up stack-down stack-status ablation test test-all test-containers images images-base sbom lint format lock golden clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: .venv/installed ## create .venv and install requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdnet needs Python 3.11 or newer, found " + sys.version.split()[0] + "; try: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Without a terminal to ask, `dvc commit` takes into the cache what data.dvc names, and refuses anything else.
data: setup ## make the synthetic data set where there is none, and check it against data.dvc
	@test -e data/mvps || pdnet data synth --out data/mvps --preset mini --seed 0
	@dvc commit --quiet data.dvc </dev/null || { \
	  echo "data/ is not the version that data.dvc names; 'dvc add data' records it as a new one" >&2; exit 2; }

demo: data ## from nothing to a trained, evaluated, exported, registered model, and a video that it made
	@dvc repro
	@pdnet predict data/mvps/Keyframes/480p/$$(head -n 1 data/mvps/ImageSets/val.txt) -o build/predict.mp4
	@pdnet summary

repro: setup ## rerun what has changed
	@dvc repro

ui: setup ## MLflow's page on http://127.0.0.1:5000
	@mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}

stack-up: setup ## MLflow with sign-in, on PostgreSQL and S3, on http://127.0.0.1:5000 (infra/stack/README.md)
	@python infra/stack/stack.py up

stack-down: setup ## stop it; the data stay
	@python infra/stack/stack.py down

stack-status: setup ## which of its services run
	@python infra/stack/stack.py status

ablation: data ## the same recipe without IPDA; the next report compares the two
	@python benchmarks/ablation_ipda.py

test: setup ## unit, golden, contract and integration tests, and tiny end-to-end runs
	@$(TESTS) -m "not slow and not containers"

test-all: setup ## the same with the slow ones
	@$(TESTS) -m "not containers"

test-containers: setup ## the pipeline in containers of the real image; starts Docker where it does not run
	@tests/containers.sh

images: ## build the container images; variables: infra/images/README.md
	@infra/images/build.sh
	@infra/images/build.sh sbom

images-base: ## a stand-in for the images' base where no registry can be reached
	@infra/images/base.sh

sbom: ## the images' bills of materials alone
	@infra/images/build.sh sbom

lint: setup ## ruff, mypy --strict, the import contract
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports

format: setup ## put the code into its standard form
	@ruff check --fix .
	@ruff format .

# torch and torchvision are pinned as a pair that works together on the CPU; NumPy is one version on every Python so
# that the synthetic data set is the same to the last byte.
lock: setup ## resolve pyproject.toml into requirements.lock again
	@printf 'torch==2.14.1\ntorchvision==0.29.1\nnumpy==2.4.6\n' | uv pip compile --quiet --universal --no-annotate \
	  --no-header --python-version 3.11 --extra pipeline --extra server --extra dev --constraint - pyproject.toml -o requirements.lock

golden: setup ## compile the Kubeflow pipeline into the file that the tests compare it with
	@kfp dsl compile --py pipelines/pdnet.py --output tests/kubeflow/golden/pdnet.yaml

clean: ## remove what the pipeline made (not data/, not the MLflow record)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
