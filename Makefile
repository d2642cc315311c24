# Every target makes its own virtual environment where there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak fuzz coverage bench bench-curves bench-gpu lint audit lock format docs notebooks boards check-boards validate-statistics clean

$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing plbench and its tools into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/plbench run --method selective --dataset scenes --simulate fpc=300

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not bench'

# For hours: kills runs, comparisons, studies, sweeps, packing, downloads and boards, KILLS times each, SEED choosing the
# moments, and gives each kind of file that is read to its readers in FUZZ damaged forms.
KILLS ?= 200
FUZZ ?= 2000
SEED ?= 0
soak: $(VENV)/.installed
	PLBENCH_KILLS=$(KILLS) PLBENCH_FUZZ=$(FUZZ) PLBENCH_KILL_SEED=$(SEED) OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest --timeout 0 -rP tests/faults

# The same readers, SECONDS each, with damage that is guided by which code it reaches (atheris: Linux, Python 3.11 to
# 3.13). READER="grid table" takes these alone. What is found is written to tests/faults/corpus, which test replays.
SECONDS ?= 60
fuzz: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'atheris>=3'
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/coverage_fuzz.py --seconds $(SECONDS) --readers $(READER)

# Apart from test, which it would slow by a third.
coverage: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not bench' --cov=plbench --cov-report= --no-cov-on-fail --cov-fail-under=85

bench: $(VENV)/.installed
	$(BIN)/python -m pytest -s -m bench tests/bench

# Time and memory over images, classes, known cells and heads, as one picture: on an idle machine, some ten minutes.
CURVES ?= docs/figures/complexity.svg
bench-curves: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/bench_curves.py $(CURVES)

# On a machine with a GPU: all that only runs there, as a table to paste. COCO=DIR also times coco-20k as a whole.
bench-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m gpu tests
	$(BIN)/python tests/bench/bench_gpu.py $(if $(COCO),--coco-20k $(COCO))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Vulnerabilities and licences of what plbench is built on; says so and passes where there is no network.
audit: $(VENV)/.installed
	.ci/audit $(BIN)/python

# The newest versions that pyproject.toml allows, into uv.lock: see CONTRIBUTING.md.
lock: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv lock --upgrade

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation site, into build/site: build/site/index.html opens without a server.
docs: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Executes the notebooks of the documentation and stores what their cells show.
notebooks: $(VENV)/.installed
	$(BIN)/python docs/execute.py

# Remakes this repository's own boards: the paper's nine rows on scenes with default values and those of 3 studies, and all
# other methods with default values, 5 seeds. Hours on two cores; what is done already is not run again. Needs a checkout
# without changes.
boards: $(VENV)/.installed
	@for simulate in fpc=300 rpa=0.5 single-positive; do \
	  $(BIN)/plbench compare -d scenes --simulate $$simulate --methods paper --seeds 5 --tune 16 --studies 3 || exit 1; \
	  $(BIN)/plbench compare -d scenes --simulate $$simulate --methods all --seeds 5 || exit 1; done
	@for seed in 0 1 2 3 4; do $(BIN)/plbench run -m ce-negative -d scenes --simulate none --seed $$seed -q > /dev/null; done
	$(BIN)/plbench board add --all
	$(BIN)/plbench board verify --cells "$${PLBENCH_RUNS:-runs}"
	$(BIN)/plbench board build
	$(BIN)/python docs/tables.py

# How often intervals and ranks err, by simulation: the figures of docs/statistics.md. Two hours.
validate-statistics: $(VENV)/.installed
	$(BIN)/python tests/metrics/table_simulation.py --tables 1000
	$(BIN)/python tests/metrics/fold_simulation.py --comparisons 1000

check-boards: $(VENV)/.installed
	$(BIN)/plbench board verify
	$(BIN)/plbench board build --check

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
