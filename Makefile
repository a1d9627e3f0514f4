# What everyday work needs; `make help` lists it.
.PHONY: help style quality types test test-slow coverage ci

help: ## this list
	@grep -E '^[a-z-]+: +##' $(MAKEFILE_LIST) | sed 's/: *##/\t/'

style: ## format the code and sort its imports
	ruff check --fix .
	ruff format .

quality: ## what CI checks before it tests
	ruff format --check .
	ruff check .
	mypy modeling_mmcot processing

test: ## the tests, without network
	HF_HUB_OFFLINE=1 pytest -n auto

test-slow: ## the long ones too
	HF_HUB_OFFLINE=1 pytest -n auto -m "slow or not slow"

coverage: ## the tests, and which lines they reach
	HF_HUB_OFFLINE=1 pytest -n auto --cov=modeling_mmcot --cov=processing --cov=training --cov-report=term-missing:skip-covered

ci: ## all that CI does, in a virtual environment of its own
	bash .ci/run
