# Everything a newcomer needs is `make demo` and `make test`; `make` alone lists the rest.
.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help setup demo test check docs campaigns chaos chaos-short bench lock format down
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with the locked dependencies and this repository
	@sh tools/setup.sh

demo: setup ## train ReXNet on the digits, be preempted half-way, resume, finish (about 3 minutes)
	@$(BIN)/rexctl demo

test: setup ## run every test that this machine can run, three at a time; what it cannot is listed at the end
	@$(BIN)/python -m pytest -n 3 --durations=15 --durations-min=30 $(ARGS)

check: setup ## lint, format, types, import direction
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## apply the formatter and the safe lint fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup ## write the generated pages anew
	@$(BIN)/python -m tools.state_page > docs/states.md
	@$(BIN)/python -m tools.exits_page > docs/exits.md
	@$(BIN)/python -m tools.manifest_schema > docs/manifest.schema.json

campaigns: setup ## damage and kill checkpoint chains on two stores; writes docs/campaigns.md
	@$(BIN)/python -m tests.campaigns $(ARGS)

chaos-short: setup ## each kind of fault at two moments on three hosts, with real training (an hour); writes docs/chaos-short.md
	@$(BIN)/python -m tests.campaigns.hosts --training --each 2 --page chaos-short

chaos: setup ## 200 faults, shared by two sets of three hosts, with the canary (two hours); writes docs/chaos-200.md
	@$(BIN)/python -m tests.campaigns.hosts --sets 2 $(ARGS)

bench: setup ## measure; prints ratios against a peer or limit of the same run
	@$(BIN)/python -m benchmarks $(ARGS)

lock: setup ## write requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock

down: setup ## stop everything that the demo brought up
	@$(BIN)/rexctl down
