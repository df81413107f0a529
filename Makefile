# Two commands: make quickstart, make test. Each makes the environment in .venv that it needs.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
OUT ?= quickstart
SYSTEM_TORCH ?=
WORKERS ?= 2
python = $(VENV)/bin/python
pytest = $(python) -m pytest -n $(WORKERS) --dist loadscope --durations=20

ifeq ($(SYSTEM_TORCH),)
pins = constraints.txt
else
venv_flags = --system-site-packages
pins = $(VENV)/constraints.txt
endif

.PHONY: quickstart test test-all lint clean

quickstart: $(VENV)/installed  ## the whole chain on the sample data, on the CPU
	$(python) examples/quickstart.py "$(OUT)"

test: $(VENV)/installed-dev  ## every test that fits in 20 minutes on two cores
	$(pytest) -m "not slow" $(TEST_FLAGS)

test-all: $(VENV)/installed-dev  ## the longer matrices too
	$(pytest) $(TEST_FLAGS)

lint: $(VENV)/installed-dev  ## rules and format, types, and that imports only go down
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(python) -m pytest -q tests/test_floors.py

clean:
	rm -rf .venv quickstart

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "About to install megatron_yuyuan into $(VENV): torch 2.13.0, numpy, safetensors, tokenizers,"
	@echo "sentencepiece, sacrebleu, lxml, rich, in the versions of constraints.txt (about 1 GB with a CPU torch)."
	@echo "  On Linux pip's default torch brings the CUDA libraries, several GB. For a CPU torch give pip its index,"
	@echo "  as pytorch.org/get-started shows it:   make quickstart PIP_FLAGS='--extra-index-url URL'"
	@echo "  To use the torch of a system's or conda's Python:  make quickstart SYSTEM_TORCH=1 PYTHON=/path/to/python"
	@echo "  To use that of a virtual environment:              make quickstart SYSTEM_TORCH=1 VENV=/path/to/environment"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(python) || $(PYTHON) -m venv $(venv_flags) $(VENV)
	@test "$(pins)" = constraints.txt || grep -v '^torch==' constraints.txt > $(pins)
	@echo "Installing; this takes a minute with a CPU torch ..."
	@$(python) -m pip install -q $(PIP_FLAGS) -c $(pins) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(python) -m pip install -q $(PIP_FLAGS) -c $(pins) -e '.[dev,fast,megatron,report,tensorboard,wandb]'
	touch $@
