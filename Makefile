# setup: the environment in .venv      demo: the main job      test: every test      check: lint and types
#
# PYTHON=python3.12                    which Python makes .venv (3.11 or newer)
# TORCH_INDEX=URL                      where torch comes from when .venv is made (else the usual package index)
# FRESH=1                              demo: start a new run where a finished one would only be shown again
# PLANNER=playbook                     demo: who decides what to try next

PYTHON ?= python3
PLANNER ?= playbook

# Its name holds a checksum of all that decides what is in .venv, and of where .venv is, which its scripts name.
READY := .venv/.ready-$(shell { echo '$(CURDIR)'; cat pyproject.toml constraints.txt; } | cksum | tr ' ' -)
INSTALL := .venv/bin/python -m pip --quiet --disable-pip-version-check install -c constraints.txt
DATA := smollm2-135m bert-tiny-mlm minilm builtin-corpus

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
	  $(INSTALL) -e '.[dev]' || { rm -f .venv/.unfinished; exit 1; }
	@mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/lamplighter
	@touch $@; rm .venv/.unfinished

# Exit code 4 says that some units failed and are recorded as failed; the table shows them.
demo: setup
	.venv/bin/lamplighter models pull $(DATA)
	.venv/bin/lamplighter run --model smollm2-135m --corpus builtin --tokens 240000 --sites 2-mlp,5-mlp,8-mlp \
	  --units auto:6 --planner $(PLANNER) $(if $(FRESH),--fresh) || [ $$? -eq 4 ]

test: setup
	.venv/bin/lamplighter models pull $(DATA)
	LAMPLIGHTER_REQUIRE=weights .venv/bin/python -P -m pytest

check: setup
	.venv/bin/python -P -m ruff check .
	MYPYPATH=.venv/typing .venv/bin/python -P -m mypy --exclude '/tests/'
