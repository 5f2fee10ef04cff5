# make serve   a running service, with a real model that answers
# make test    the tests
# make test-torch  the tests of the engines that need torch, in an environment of their own
# make test-oldest the tests of units, contracts, pages and an application with the oldest versions of all dependencies
# make check   style, types, the wheel
# make fuzz    thousands of made-up requests to every call of running services (FUZZ_EXAMPLES=100 each, FUZZ_SEED=1)
# make bench   figures, against a peer
# make interop both sides of the wire with DB-GPT's own package
# make interop-openai  the tests of OpenAI's and Anthropic's clients, and of others (SUITE=langchain runs some of them)
# make interop-flask   applications of others and the tests of Flask's extensions, with Modelyard in them (SUITE=httpbin)
# make check-image     builds the image with docker or podman, and runs it (IMAGE_TOOL=podman; IMAGE_BUILD and IMAGE_RUN are options)

PORT ?= 8000
VENV ?= .venv
FUZZ_EXAMPLES ?= 100
FUZZ_SEED ?= 1
MODELS ?= models
BIN := $(VENV)/bin
SERVE_STAMP := $(VENV)/.serve
TEST_STAMP := $(VENV)/.test
TORCH_VENV ?= .venv-torch
TORCH ?= torch==2.13.0
TORCH_STAMP := $(TORCH_VENV)/.test
OLDEST_VENV ?= .venv-oldest
OLDEST := tests/constraints-oldest.txt
OLDEST_STAMP := $(OLDEST_VENV)/.test

# Each of the thousand programs that the tests start would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve weights test test-torch test-oldest check fuzz bench interop interop-openai interop-flask check-image clean

serve: $(SERVE_STAMP) weights
	exec $(BIN)/modelyard serve --port $(PORT) --models-dirs $(MODELS) --state-dir .state

weights: $(SERVE_STAMP)
	$(BIN)/modelyard pull --models-dirs $(MODELS)

test: $(TEST_STAMP) weights
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Another build of torch: make test-torch TORCH='torch==2.13.0 --index-url URL'
test-torch: $(TORCH_STAMP) weights
	$(TORCH_VENV)/bin/python -m pytest tests/huggingface tests/contract/test_engines.py

test-oldest: $(OLDEST_STAMP) weights
	$(OLDEST_VENV)/bin/python -m pytest -n 2 --dist loadfile tests/unit tests/contract tests/monolith tests/pages tests/cli

check: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	scripts/check-types $(VENV)

fuzz: $(TEST_STAMP)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest tests/process/test_fuzz.py

bench: $(TEST_STAMP) weights
	$(BIN)/python -m bench

interop: $(TEST_STAMP)
	$(BIN)/python -m pytest tests/interop -v -o python_files='check_*.py' -o python_functions='check_*'

interop-openai: $(TEST_STAMP) weights
	$(BIN)/python -m pytest tests/interop_openai -v -k '$(SUITE)' -o python_files='check_*.py' -o python_functions='check_*'

interop-flask: $(TEST_STAMP)
	$(BIN)/python -m pytest tests/interop_flask -v -k '$(SUITE)' -o python_files='check_*.py' -o python_functions='check_*'

check-image: $(TEST_STAMP) weights
	$(BIN)/python -m pytest tests/image -v -o python_files='check_*.py' -o python_functions='check_*'

$(SERVE_STAMP): setup.cfg pyproject.toml
	scripts/venv $(VENV) server,llama
	touch $@

$(TEST_STAMP): $(SERVE_STAMP)
	scripts/venv $(VENV) server,llama,test,check
	touch $@

$(TORCH_STAMP): setup.cfg pyproject.toml
	scripts/venv $(TORCH_VENV) server,llama,test,transformers,sentence-transformers $(TORCH)
	touch $@

$(OLDEST_STAMP): setup.cfg pyproject.toml $(OLDEST)
	scripts/venv $(OLDEST_VENV) server,llama,test --constraint $(OLDEST)
	touch $@

clean:
	rm -rf $(VENV) $(TORCH_VENV) $(OLDEST_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
