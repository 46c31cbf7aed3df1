# Every command a person needs. Only python3.11 and make have to be there first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
# matplotlib keeps a font cache; this keeps it out of the home folder
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/cache/matplotlib

.PHONY: browser train test test-all check bench docs clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

install: $(STAMP) ## create .venv and install everything into it

train: $(STAMP) ## train and evaluate X2CT-CLIP on the phantom cohort (minutes, CPU)
	cd monai_bundles && PATH="$(BIN):$$PATH" python -m monai.bundle run --config_file x2ct/configs/train.json

browser: ## Chromium, for the tests that look at the report
	@command -v chromium > /dev/null || \
	{ test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } || \
	echo "no Chromium: the browser tests skip; install it with: sudo apt-get install chromium"

test: $(STAMP) browser ## the default suite: offline, CPU, minutes
	PATH="$(BIN):$$PATH" python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP) browser ## everything, with the slow tests
	PATH="$(BIN):$$PATH" python -m pytest $(PYTEST_ARGS)

check: $(STAMP) ## lint, types, bundles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for bundle in monai_bundles/*/; do $(BIN)/medvl bundle check $$bundle || exit 1; done

bench: $(STAMP) ## benchmarks, each against its peer in the same run
	for file in benchmarks/bench_*.py; do PATH="$(BIN):$$PATH" python $$file || exit 1; done

docs: $(STAMP) ## pictures and tables of the docs
	cd docs/explanation && PATH="$(BIN):$$PATH" python -m medvl_baseline.phantom.gallery --out phantom-cohort.png
	cd docs/explanation && PATH="$(BIN):$$PATH" python -m medvl_x2ct.realism --out simulated-radiographs.png

clean: ## remove what running the bundles left behind, all weights in models/ included
	rm -rf monai_bundles/*/models monai_bundles/*/eval monai_bundles/*/cache monai_bundles/*/mlruns monai_bundles/*/mlruns.db
