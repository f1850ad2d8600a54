# Trellis: `make help` lists the targets. Everything is set up in .venv (ours) and .trellis (the apps' interpreter).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup guest demo test test-interop cluster check format proto requirements chart bench engine images push secrets clean

# Any Python from 3.11 on: PYTHON=python3.12 make demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := libs/wire libs/kit libs/runner libs/testing services/superlink services/supernode services/serverapp services/clientapp cli
GUEST := .trellis/guest
CONTAINERS := .trellis/containers
TESTS ?= tests/unit tests/crash tests/badinput tests/tls tests/interop tests/identity tests/containers tests/kubernetes
# Those in containers and on Kubernetes need a Docker engine, which is looked for before any test runs.
ENGINE := $(if $(findstring tests/containers,$(TESTS))$(filter tests tests/kubernetes tests/kubernetes/ tests/kubernetes/test_%,$(TESTS)),engine)
export RELEASES TESTS

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## install Trellis and its tools into .venv

# Hashed requirements decide what is installed; our own packages are editable on top.
$(VENV)/.ready: requirements/dev.txt $(addsuffix /pyproject.toml,$(PACKAGES))
	@bash scripts/make-venv $(PYTHON) $(VENV) requirements/dev.txt $(PACKAGES)
	@touch $@

guest: $(GUEST)/.ready ## make the interpreter that hosts the example apps (flwr, scikit-learn)

$(GUEST)/.ready: requirements/guest.txt
	@bash scripts/make-venv $(PYTHON) $(GUEST) requirements/guest.txt
	@touch $@

demo: setup guest ## train examples/digits on a federation of processes, then stop it
	@exec $(BIN)/trellis demo --guest-python $(CURDIR)/$(GUEST)/bin/python examples/digits

test: $(ENGINE) setup guest ## run all tests (brings what is missing; TRELLIS_BIN: programs of a Kubernetes, else built once); a part: make test TESTS=tests/unit
	@bash scripts/install-test-tools
	@exec $(BIN)/pytest $(TESTS)

cluster: setup ## keep the tests' Kubernetes up until Ctrl-C, to look around
	@TESTS=tests/kubernetes bash scripts/install-test-tools
	@PYTHONPATH=tests:tests/kubernetes exec $(BIN)/python -m cluster

test-interop: setup guest ## stock releases only: make test-interop RELEASES=all (or 1.24.0,1.41.0); all writes docs/compatibility.md
	@exec $(BIN)/pytest tests/interop

check: setup ## ruff, strict mypy, import rules, generated stubs and chart files up to date, all tests can be collected together
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(foreach p,$(PACKAGES),$(wildcard $(p)/trellis_*)) tests benchmarks
	$(BIN)/lint-imports
	@bash scripts/generate-stubs --check
	@$(BIN)/python scripts/chart --check
	@collected=$$($(BIN)/pytest --collect-only -qq $(TESTS)) || { echo "$$collected"; exit 1; }

format: setup ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: setup ## write libs/wire/trellis_wire/pb from proto/
	@bash scripts/generate-stubs

requirements: setup ## resolve the hashed requirement files anew from the pyproject files
	@bash scripts/lock-requirements

chart: setup ## write the chart's values.schema.json and docs/helm-values.md from values.schema.yaml
	@$(BIN)/python scripts/chart

$(CONTAINERS)/.ready: requirements/containers.txt
	@bash scripts/make-venv $(PYTHON) $(CONTAINERS) requirements/containers.txt
	@touch $@

engine: $(CONTAINERS)/.ready ## bring a Docker engine and Docker Compose where none answer (Debian and Ubuntu, as root)
	@PYTHON=$(PYTHON) bash scripts/docker-engine

images: ## build every image and print its size (BASE_IMAGE, IMAGE_PREFIX, IMAGE_TAG: see scripts/build-images)
	@PYTHON=$(PYTHON) bash scripts/build-images

push: ## push the images: make push REGISTRY=images.example.org/trellis
	@bash scripts/push-images $(REGISTRY)

secrets: ## make the passwords that compose/compose.oidc.yaml needs, in compose/secrets
	@bash scripts/make-secrets

bench: setup guest ## measure against stock Flower (see benchmarks/README.md)
	@exec $(BIN)/python -m benchmarks

clean: ## remove the environments and what tests left
	rm -rf $(VENV) .trellis build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
