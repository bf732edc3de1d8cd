# The same targets for people and for CI. Nothing else needs to be installed first.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# A Python of 3.11 or newer; `make demo PYTHON=/path/to/python3.12` chooses another.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell \
  $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v $(name))))
# On Linux without an NVIDIA GPU, TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu saves 3 GB.
TORCH_INDEX_URL ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
CLIENTS := .venv-clients
INSTALLED := $(VENV)/.installed
MEMBERS := contract worker backend client
# Tests start dozens of processes, each of which would compile the same files again.
unexport PYTHONDONTWRITEBYTECODE
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## What can be done here
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements.in constraints.txt $(MEMBERS:%=%/pyproject.toml)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found. Set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV) (about two minutes) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq -c constraints.txt setuptools wheel
	@$(PIP) install -qq -c constraints.txt $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	@$(PIP) install -qq -c constraints.txt -r requirements.in
	@$(PIP) install -qq --no-deps --no-build-isolation $(MEMBERS:%=-e %)
	@touch $@

.PHONY: setup
setup: $(INSTALLED) ## Make the virtual environment with every pinned package

.PHONY: demo
demo: $(INSTALLED) ## Draw real pictures: base, with a LoRA, base again; into demo-output/
	@$(PY) -m scripts.demo

.PHONY: serve
serve: $(INSTALLED) ## Keep backend and worker running on 127.0.0.1 (PORT, WORKER_PORT, DATA_DIR)
	@exec $(PY) -m scripts.serve

.PHONY: test
test: $(INSTALLED) ## The tests, lint and types included, file by file on up to four cores (7 to 10 minutes on two)
	@$(PY) -m pytest $(SIDE_BY_SIDE)

.PHONY: test-all
test-all: $(INSTALLED) ## Also the tests that take long: chaos, kills, every view of the page (25 minutes)
	@$(PY) -m pytest --all $(SIDE_BY_SIDE)

.PHONY: test-browser
test-browser: $(INSTALLED) ## Every test of the page, in a real Chromium
	@$(PY) -m pytest --all tests/browser $(SIDE_BY_SIDE)

.PHONY: setup-clients
setup-clients: ## Clients that .venv has not, pinned, for test-clients (Node 20, a minute)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found. Set PYTHON=/path/to/python3.11"; exit 1; }
	@command -v npm >/dev/null || { echo "npm is needed: install Node.js 20.19 or newer"; exit 1; }
	@$(PYTHON) -m venv $(CLIENTS) && $(CLIENTS)/bin/pip --disable-pip-version-check install -qq \
	  -c tests/clients/constraints.txt -r tests/clients/requirements.in
	@$(PYTHON) -m venv $(CLIENTS)/alone && $(CLIENTS)/alone/bin/pip --disable-pip-version-check install -qq \
	  -c constraints.txt ./client
	@cd tests/clients && npm ci --no-audit --no-fund --ignore-scripts
	@cd tests/clients/sillytavern && npm ci --no-audit --no-fund --ignore-scripts

.PHONY: test-clients
test-clients: $(INSTALLED) ## The real clients against the real backend and worker; none may be missing
	@REQUIRE_CLIENTS=1 $(PY) -m pytest --all tests/clients

.PHONY: test-long
test-long: $(INSTALLED) ## The outages of the tests in minutes: worker away, backend killed (10 minutes)
	@$(PY) -m pytest --long -s --timeout 900 tests/test_outages.py

.PHONY: check
check: $(INSTALLED) lint types ## In a minute: lint, types, the tests that need neither a process nor a model
	@$(PY) -m pytest --quick $(SIDE_BY_SIDE)

.PHONY: lint
lint: $(INSTALLED) ## ruff: style and common mistakes
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

.PHONY: types
types: $(INSTALLED) ## mypy, strict, over every Python file
	@$(PY) -m scripts.check_types

.PHONY: format
format: $(INSTALLED) ## Rewrite the code in the one style
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

.PHONY: evaluate-demo-model
evaluate-demo-model: $(INSTALLED) ## How well the small model draws (under 15 minutes; last line JSON)
	@$(PY) -m benchmarks.evaluate_demo_model

.PHONY: bench-lora-swap
bench-lora-swap: $(INSTALLED) ## One LoRA swap at the real size against diffusers (needs 20 GB of memory)
	@$(PY) -m benchmarks.bench_lora_swap

.PHONY: bench-cold-start
bench-cold-start: $(INSTALLED) ## Process start to loaded SDXL against diffusers (16 GB of memory, 7 GB of disk once)
	@$(PY) -m benchmarks.bench_cold_start --cold

.PHONY: bench-gpu
bench-gpu: $(INSTALLED) ## Seconds, dollars and exactness of a picture against plain diffusers, on a real GPU
	@$(PY) -m benchmarks.gpu_generate --json benchmarks/results/gpu_generate.json

# On a machine that has torch and diffusers already, and no network, by its own Python (PYTHON=...).
CAN_CHECK := -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))'
GPU_CHECK_NEEDS := torch diffusers transformers safetensors pydantic pydantic_settings fastapi uvicorn structlog \
  prometheus_client PIL numpy
.PHONY: gpu-check
gpu-check: ## All that only a GPU can show, offline, in ten minutes; GPU_CHECK='--only ours,fp8' or --seconds
	@python=; test -e $(INSTALLED) || for one in $(PYTHON) python3; do \
	  $$one $(CAN_CHECK) $(GPU_CHECK_NEEDS) && python=$$one && break; done; \
	test -n "$$python" || { $(MAKE) --no-print-directory $(INSTALLED) && python=$(PY); } && \
	PYTHONPATH="contract/src:worker/src:$$PYTHONPATH" $$python -m benchmarks.gpu_check \
	  --json benchmarks/results/gpu_check.json $(GPU_CHECK)

.PHONY: bench-png
bench-png: $(INSTALLED) ## Writing a photo-like PNG against Pillow: seconds and bytes
	@$(PY) -m benchmarks.bench_png

.PHONY: bench-marking
bench-marking: $(INSTALLED) ## A signed manifest: milliseconds and bytes a picture
	@$(PY) -m benchmarks.bench_marking --json benchmarks/results/marking.json

.PHONY: bench-watermark
bench-watermark: $(INSTALLED) ## What the watermark outlives, and how often it is found where there is none
	@$(PY) -m benchmarks.bench_watermark --json benchmarks/results/watermark.json

.PHONY: bench-replays
bench-replays: $(INSTALLED) ## Fifty pictures, each drawn again from its own file and compared
	@$(PY) -m benchmarks.bench_replays --json benchmarks/results/replays.json

.PHONY: bench-studio
bench-studio: $(INSTALLED) ## The page on a slow phone: seconds until it can be used, bytes over the line
	@$(PY) -m benchmarks.bench_studio --json benchmarks/results/studio.json

.PHONY: deploy-check
deploy-check: $(INSTALLED) ## The Modal deployment as far as it can be checked without an account
	@$(PY) -m deploy.check

.PHONY: deploy
deploy: $(INSTALLED) ## The worker onto Modal: says what it costs, asks, then does it (YES=1: does not ask)
	@$(PY) -m deploy.deploy $(if $(YES),--yes)

.PHONY: deploy-costs
deploy-costs: $(INSTALLED) ## What `make deploy` would cost; needs no account
	@$(PY) -m deploy.deploy --costs

.PHONY: chaos
chaos: $(INSTALLED) ## 300 jobs while everything around two backends fails; then the balance (15 minutes)
	@$(PY) -m chaos.run

.PHONY: bench-api
bench-api: $(INSTALLED) ## Jobs per second and the backend's own time, against a plain FastAPI app
	@$(PY) -m benchmarks.bench_api

.PHONY: studio
studio: ## Build the page into backend/app/static/studio (needs Node 20.19 or newer)
	@command -v npm >/dev/null || { echo "npm is needed: install Node.js 20.19 or newer"; exit 1; }
	@cd studio && npm ci --no-audit --no-fund && npm run build

.PHONY: openapi
openapi: $(INSTALLED) ## docs/openapi.json from the app; the page's types from it (where Node is there)
	@$(PY) -m scripts.openapi
	@if command -v npm >/dev/null; then cd studio && npm ci --no-audit --no-fund && npm run -s types; \
	else echo "npm is not here: studio/src/server/openapi.ts was left as it is"; fi

.PHONY: screenshots
screenshots: $(INSTALLED) ## Pictures of every view, light and dark, into docs/images (needs chromium)
	@$(PY) -m scripts.screenshots

.PHONY: simulate
simulate: $(INSTALLED) ## Latency and dollars per image of a fleet on Modal; writes docs/scaling.md's tables and plots
	@$(PY) -m benchmarks.fleet

.PHONY: lock
lock: ## Resolve constraints.txt anew from requirements.in, and the images' hashes (needs uv)
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate requirements.in -o constraints.txt
	$(PY) -m scripts.lock_images

.PHONY: clean
clean: ## Remove what was built; keeps .data
	rm -rf $(VENV) $(CLIENTS) tests/clients/node_modules tests/clients/sillytavern/node_modules \
	  .mypy_cache .ruff_cache .pytest_cache demo-output
