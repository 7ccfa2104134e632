# make book    the book, from nothing to a page to open
# make test    every page, notebook and doctest, and all tests but the slow ones
# make help    all targets

PYTHON      ?= python3
PYTEST_ARGS ?=
ONLY        ?=
# one process per core; a file's tests, and a notebook's cells, stay together, in the order of the files: a file of few
# and long tests, begun last, would keep one core waiting
PYTEST_RUNS := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 12

VENV    := .venv
BIN     := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY      := $(BIN)/python
READY   := $(VENV)/nlcompanion-installed.json
BENCHES := $(sort $(wildcard benchmarks/bench_*.py))
PEERS   := $(sort $(wildcard benchmarks/peers/bench_*.py))

# One thread everywhere: the same last bits, and no waiting for a busy neighbour.
export OMP_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1
export MKL_NUM_THREADS = 1
export VECLIB_MAXIMUM_THREADS = 1
# Only what .venv holds is imported, and no figure opens a window or stays away from its notebook.
unexport PYTHONPATH
unexport PYTHONHOME
unexport MPLBACKEND

MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:
.SUFFIXES:
.DEFAULT_GOAL := help
.PHONY: help book pdf test test-all test-elsewhere test-versions bugs lab notebooks results bench bench-peers clean FORCE

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

book: $(READY) ## install what is needed and build the book
	@$(PY) -m tools.build

pdf: book ## the whole book as one PDF (needs Chromium)
	@$(PY) -m tools.pdf

test: book ## build the book, then check its pages, every notebook and doctest, and all tests but the slow ones
	@$(PY) -m pytest $(PYTEST_RUNS) $(PYTEST_ARGS)

test-all: book ## the same with the slow tests
	@$(PY) -m pytest $(PYTEST_RUNS) -m "" $(PYTEST_ARGS)

test-elsewhere: book ## the tests and notebooks in the arithmetic of other processors (ONLY="oldest" for one)
	@$(PY) -m tools.elsewhere $(ONLY) -- $(PYTEST_RUNS) $(PYTEST_ARGS)

test-versions: $(READY) ## the package's tests with the oldest and the newest versions of what it needs
	@$(PY) -m tools.versions $(ONLY) -- $(PYTEST_RUNS) $(PYTEST_ARGS)

bugs: $(READY) ## plant bugs in the formulas, one at a time, and see which tests notice (ONLY="ntk" for some)
	@$(PY) -m tools.planted_bugs $(ONLY)

lab: $(READY) ## open the notebooks in JupyterLab
	@$(BIN)/jupyter trust book/*.ipynb > /dev/null  # their controls are shown before anything is run
	@$(BIN)/jupyter-lab book

notebooks: $(READY) ## execute every notebook again and keep the outputs
	@$(PY) -m tools.notebooks
	@$(PY) -m tools.what_holds

results: $(READY) ## measure book/results/ again (long runs, optional data)
	@$(PY) -m studies

bench: $(READY) ## run every benchmark, one after another
	@missed=0; for bench in $(BENCHES); do echo "== $$bench"; $(PY) "$$bench" || missed=1; done; exit $$missed

bench-peers: $(READY) ## the same against packages on JAX, in an environment of their own
	@$(PY) benchmarks/peers/environment.py
	@missed=0; for bench in $(PEERS); do echo "== $$bench"; $(PY) "$$bench" || missed=1; done; exit $$missed

clean: ## remove all that these commands made, .venv included
	rm -rf $(VENV) .venv-peers _build .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

# Always looked at, rarely remade: the script compares what is installed with what is wanted.
$(READY): FORCE
	@$(PYTHON) tools/environment.py
