# make serve   a running service, with a real model that answers
# make test    the tests
# make check   style, types, the wheel
# make bench   figures, against a peer
# make interop both sides of the wire with DB-GPT's own package
# make interop-openai  the tests of OpenAI's and Anthropic's clients, and of others (SUITE=langchain runs some of them)

PORT ?= 8000
VENV ?= .venv
MODELS ?= models
BIN := $(VENV)/bin
SERVE_STAMP := $(VENV)/.serve
TEST_STAMP := $(VENV)/.test

.PHONY: serve weights test check bench interop interop-openai clean

serve: $(SERVE_STAMP) weights
	exec $(BIN)/modelyard serve --port $(PORT) --models-dirs $(MODELS) --state-dir .state

weights: $(SERVE_STAMP)
	$(BIN)/modelyard pull --models-dirs $(MODELS)

test: $(TEST_STAMP) weights
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	scripts/check-types $(VENV)

bench: $(TEST_STAMP) weights
	$(BIN)/python -m bench

interop: $(TEST_STAMP)
	$(BIN)/python -m pytest tests/interop -v -o python_files='check_*.py' -o python_functions='check_*'

interop-openai: $(TEST_STAMP) weights
	$(BIN)/python -m pytest tests/interop_openai -v -k '$(SUITE)' -o python_files='check_*.py' -o python_functions='check_*'

$(SERVE_STAMP): setup.cfg pyproject.toml
	scripts/venv $(VENV) server,llama
	touch $@

$(TEST_STAMP): $(SERVE_STAMP)
	scripts/venv $(VENV) server,llama,test,check
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
