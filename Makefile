# Everything starts here, on a Debian machine with python3 and make; scripts/setup fetches the rest.
.DEFAULT_GOAL := help
.PHONY: help run test lint fmt bench setup clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## bring a cluster up on this machine (as root), pull, kill a replica meanwhile; Ctrl-C ends it
	@scripts/setup run
	@.venv/bin/sluice demo

test: setup lint ## all checks and all tests
	@.venv/bin/pytest

lint: setup ## style, types and layers
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy src tests $(wildcard bench)
	.venv/bin/lint-imports

fmt: setup ## put the code into the house style
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: ## measure against other registries; writes docs/benchmarks.md
	@scripts/setup bench
	@.venv/bin/python -m bench

setup: ## install what is missing, nothing else
	@scripts/setup test

clean: ## remove what tools made
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +
