# make demo   set everything up, run a real sweep on real data, print the recommendation
# make test   set everything up, run the tests
# make check  lint, types, import contract

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= demo-$(shell date +%Y%m%d-%H%M%S)

export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test check format clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e ".[train,data,jobs,dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/planner plan quickstart
	$(BIN)/planner sweep quickstart --name $(RUN)
	$(BIN)/planner fit $(RUN)
	$(BIN)/planner recommend $(RUN)
	$(BIN)/planner report $(RUN)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
