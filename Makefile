# setup: the environment in .venv      demo: the main job      test: every test      check: lint and types
#
# PYTHON=python3.12                    which Python makes .venv (3.11 or newer)
# TORCH_INDEX=URL                      where torch comes from when .venv is made (else the usual package index)
# FRESH=1                              demo: start a new run where a finished one would only be shown again
# PLANNER=playbook                     demo: without a language model
# ENDPOINT=URL                         demo: an OpenAI-compatible server in place of the embedded language model

PYTHON ?= python3
PLANNER ?= llm

# Its name holds a checksum of all that decides what is in .venv, and of where .venv is, which its scripts name.
READY := .venv/.ready-$(shell { echo '$(CURDIR)'; cat pyproject.toml constraints.txt; } | cksum | tr ' ' -)
INSTALL := .venv/bin/python -m pip --quiet --disable-pip-version-check install -c constraints.txt
DATA := smollm2-135m bert-tiny-mlm minilm builtin-corpus
LLM := $(if $(ENDPOINT)$(filter playbook,$(PLANNER)),,qwen2.5-coder-1.5b)
SWEEP := --model smollm2-135m --corpus builtin --tokens 240000 --sites 2-mlp,5-mlp,8-mlp

.PHONY: setup demo test check

setup: $(READY)

# .unfinished outlives only a set-up that was killed: such a .venv is made anew, since nobody knows what is half there.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "lamplighter needs Python 3.11 or newer, which '$(PYTHON)' is not; name another: make setup PYTHON=python3.12" >&2; \
	  exit 1; }
	@if [ -e .venv/.unfinished ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  echo "making .venv"; \
	  $(PYTHON) -m venv --clear .venv; \
	fi
	@touch .venv/.unfinished; rm -f .venv/.ready-*
	@echo "installing Python packages into .venv (some minutes the first time)"
	@{ [ -z "$(TORCH_INDEX)" ] || $(INSTALL) --no-deps --index-url "$(TORCH_INDEX)" torch; } && \
	  $(INSTALL) -e '.[dev,embedded]' || { rm -f .venv/.unfinished; exit 1; }
	@mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/lamplighter
	@touch $@; rm .venv/.unfinished

# The language model (1.1 GB) is fetched while the sweep computes. Exit code 4 says that some units failed and are
# recorded as failed; the table shows them.
demo: setup
	.venv/bin/lamplighter models pull $(DATA)
	@[ -z "$(LLM)" ] || { echo "fetching $(LLM) (1.1 GB) during the sweep"; \
	  .venv/bin/lamplighter models pull $(LLM) > .venv/pull.log 2>&1 & pull=$$!; trap 'kill $$pull 2>/dev/null' INT TERM; \
	  .venv/bin/lamplighter sweep $(SWEEP) > .venv/sweep.log || { kill $$pull; exit 1; }; \
	  wait $$pull || { tail -n 1 .venv/pull.log >&2; exit 1; }; }
	.venv/bin/lamplighter run $(SWEEP) --units auto:6 --planner $(PLANNER) $(if $(ENDPOINT),--endpoint $(ENDPOINT)) \
	  $(if $(FRESH),--fresh) || [ $$? -eq 4 ]

test: setup
	.venv/bin/lamplighter models pull $(DATA)
	LAMPLIGHTER_REQUIRE=weights .venv/bin/python -P -m pytest -n auto --dist loadfile

check: setup
	.venv/bin/python -P -m ruff check .
	MYPYPATH=.venv/typing .venv/bin/python -P -m mypy --exclude '/tests/'
