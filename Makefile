# make run: the page on port 7860. make test: what CI runs. make verify: the long suites, recorded in docs/.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: run test verify install

run: install
	$(BIN)/python app.py

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/ -n 2 --dist loadfile -m "not slow"

verify: install
	HF_HUB_OFFLINE=1 $(BIN)/pytest tests/ -m slow -s
	$(BIN)/python -m benchmarks --record docs/benchmarks.md

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt -r requirements-dev.txt
	touch $@
