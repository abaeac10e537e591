# The two commands of the README are `make up` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help up test check prove checkov bench inbound contract clean

help: ## what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 17

up: .venv/local ## the whole stack on this machine, in the foreground; Ctrl-C ends all of it
	@exec $(BIN)/headworks up $(ARGS)

test: .venv/dev ## lint, types and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

check: .venv/dev ## the fast inner loop: lint, types and the tests that need no real binary
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not real"

prove: .venv/dev ## run what the documents promise, beside controls that must fail; writes prove.json
	$(BIN)/python -m bench.prove $(ARGS)

checkov: .venv/dev ## scan the rendered manifests with checkov, in an environment of its own
	@PYTHON=$(PYTHON) scripts/checkov

bench: .venv/bench ## the limiter beside its peers; writes bench-core.json, fails when a bound is missed
	$(BIN)/python -m bench.core $(ARGS)

inbound: .venv/bench ## what the way in costs a request; writes bench-inbound.json, fails as bench does
	$(BIN)/python -m bench.inbound $(ARGS)

contract: .venv/bench ## ten pods on one quota, every cell (ARGS=--processes: real ones, too); writes bench-contract.json and .svg
	$(BIN)/python -m bench.contract --json bench-contract.json --plot bench-contract.svg $(ARGS)

clean: ## remove everything that was made
	rm -rf .venv .venv-checkov .mypy_cache .ruff_cache .pytest_cache .hypothesis .headworks prove.json bench-*.json bench-*.svg

.venv/local: pyproject.toml scripts/venv
	@PYTHON=$(PYTHON) scripts/venv local

.venv/dev: pyproject.toml scripts/venv
	@PYTHON=$(PYTHON) scripts/venv dev

.venv/bench: pyproject.toml scripts/venv
	@PYTHON=$(PYTHON) scripts/venv bench
