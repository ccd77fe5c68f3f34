# Every target makes what it needs: a virtual environment in .venv with PyTorch, pushforward and its tools.
#
#   PYTHON=python3.12         another interpreter, 3.11 or newer
#   TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#                             another PyTorch; on Linux this one spares the download of the CUDA libraries
#   PEERS=python              an interpreter that has JAX, CasADi and asdex (`make peers`, `make bench-sparse`)
#   SECONDS=600 SEED=0        how long `make fuzz` runs, and its first program

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
JOBS ?= 2
TESTS ?= tests src
SECONDS ?= 600
SEED ?= 0
PEERS ?= .venv-peers/bin/python

BIN := $(VENV)/bin
# One stamp for each torch asked for, so that another TORCH is installed and not ignored.
STAMP := $(VENV)/.installed-$(subst =,-,$(firstword $(TORCH)))
DOCS_STAMP := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help demo examples gallery docs test tests test-newest test-oldest lint coverage bench bench-memory bench-scalar bench-sparse peers bench-scipy bench-distributed package switch fuzz clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## Jacobians of a digits network, and stiff kinetics; prints tables, saves out/demo.png.
	@echo "== demo: two jobs on real input, under two minutes on 2 cores"
	$(BIN)/python examples/demo.py

EXAMPLES := stiff_pdes bundle_adjustment truss pinn robot_arm cluster_modes tangent_kernel torch_func_tutorials
examples: $(STAMP) ## Derivatives at work: stiff PDEs, bundle adjustment, a truss, ...; tables, pictures in out/.
	@echo "== examples: eight scripts, each under a minute on one core"
	@set -e; for name in $(EXAMPLES); do echo "-- $$name"; $(BIN)/python examples/$$name.py; done

gallery: demo examples ## Run them and the demo, and make the pictures of docs/gallery.md from theirs.
	$(BIN)/python tools/pictures.py

docs: $(DOCS_STAMP) ## Build the documentation in site/; a warning is an error.
	@echo "== docs: mkdocs, strict"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html."

test-newest: ## Run the tests with the newest PyTorch that pip finds, in .venv-newest (gigabytes, minutes).
	@echo "== test-newest: the newest PyTorch, in an environment of its own"
	@rm -f .venv-newest/.installed-*  # there may be a newer one
	$(MAKE) tests VENV=.venv-newest TORCH=torch

test-oldest: ## Run the tests of derivatives with the oldest PyTorch that works, in .venv-oldest.
	@echo "== test-oldest: the oldest PyTorch, in an environment of its own"
	$(MAKE) tests VENV=.venv-oldest TORCH=torch==2.11.0 \
		TESTS="tests/contracts tests/compositions tests/tape tests/rules"

tests: $(STAMP)
	$(BIN)/python -c 'import torch; print("PyTorch", torch.__version__)'
	$(BIN)/python -m pytest -n $(JOBS) --doctest-modules $(TESTS)

test: lint ## Lint, then run every test and every example in a docstring.
	@echo "== test: tests/ and the docstrings of src/, $(JOBS) processes"
	$(BIN)/python -m pytest -n $(JOBS) --doctest-modules tests src

lint: $(STAMP) ## Check style, formatting and types.
	@echo "== lint: ruff check, ruff format, mypy"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(STAMP) ## Differentiate every operator of PyTorch's database; print how many go by which rule.
	@echo "== coverage: all samples of op_db, $(JOBS) processes (five minutes)"
	$(BIN)/python tests/coverage/report.py --jobs $(JOBS)

switch: ## Run five projects' own tests with torch.func and with ours, in .venv-switch (gigabyte, ten minutes).
	@echo "== switch: tests of projects that use torch.func, as they are and with the import swapped"
	$(MAKE) .venv-switch/.installed-projects VENV=.venv-switch
	PYTHONPATH=tests .venv-switch/bin/python -m switching

.venv-switch/.installed-projects: tests/switching/requirements.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

fuzz: $(STAMP) ## Run random programs for SECONDS from SEED on; print failures cut down to a few lines.
	@echo "== fuzz: random programs from seed $(SEED) on, $(SECONDS) s, one process"
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS) --seed $(SEED)

bench: $(STAMP) ## Measure speed and memory, as ratios to torch.func of the same run.
	@echo "== bench: medians in one process, one thread"
	$(BIN)/python benchmarks/run.py

bench-memory: $(STAMP) ## Measure peaks of memory, as ratios to torch.func's, and what was expected.
	@echo "== bench-memory: allocated bytes of repeated calls, each in a process of its own (fifteen minutes)"
	KINETO_LOG_LEVEL=99 PYTHONPATH=tests $(BIN)/python benchmarks/memory.py $(ARGS)

bench-scalar: $(STAMP) ## Count multiplications of scalar codes beside published counts, and time them.
	@echo "== bench-scalar: orders of elimination; medians in one process, one thread"
	$(BIN)/python benchmarks/scalar.py

bench-sparse: $(STAMP) ## Measure sparse Jacobians and Hessians next to asdex and CasADi, where PEERS=python has them.
	@echo "== bench-sparse: medians, one core, each library in processes of its own (half an hour with peers)"
	$(BIN)/python benchmarks/sparse.py

peers: $(STAMP) $(PEERS) ## Measure all beside torch.compile, JAX, CasADi, asdex; writes benchmarks/RESULTS.md and a picture.
	@echo "== peers: each library in processes of its own, one core (forty minutes; ARGS='--only MLP --quick' takes less)"
	PEERS=$(PEERS) $(BIN)/python benchmarks/peers.py $(ARGS)

.venv-peers/bin/python:
	@echo "== setup: .venv-peers with JAX, CasADi and asdex"
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet asdex==0.5.1 casadi jax numba scipy

bench-scipy: $(STAMP) ## Time SciPy's solvers with our derivatives and with finite differences.
	@echo "== bench-scipy: whole solves, CPU time of one thread (two minutes)"
	$(BIN)/python benchmarks/scipy_solves.py

bench-distributed: $(STAMP) ## Measure Jacobians over one and two processes, and what they send.
	@echo "== bench-distributed: medians, one thread a process, over gloo (two minutes)"
	$(BIN)/python benchmarks/distributed.py

package: $(STAMP) ## Build wheel and source distribution in dist/; install the wheel in a fresh environment, and use it.
	@echo "== package: build, install, use"
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python tools/check_package.py

clean: ## Remove .venv, caches and outputs.
	@echo "== clean: removing $(VENV), caches, build/, dist/, site/ and out/"
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-switch .venv-peers build dist out site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMP): pyproject.toml
	@echo "== setup: $(VENV) with $(TORCH) and pushforward[dev] (minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pushforward needs Python 3.11 or newer; name one with PYTHON=python3.x"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*
	$(BIN)/python -m pip install --quiet --upgrade $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@echo "== setup: pushforward[docs] (a minute the first time)"
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
