# make demo: the main job on real data. make test: linter, types and tests.
# Each makes .venv, with what it needs, from Python 3.11 or newer.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-backends clean

demo: $(VENV)/demo-installed
	$(VENV)/bin/python training/demo.py --output=demo

test: $(VENV)/test-installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n 2

test-slow: $(VENV)/test-installed
	$(VENV)/bin/python -m pytest -m slow -n 2

# what is true on every backend of Keras; KERAS_BACKEND=jax asks that one alone
test-backends: $(VENV)/test-installed
	for backend in $(or $(KERAS_BACKEND),jax torch); do \
		KERAS_BACKEND=$$backend $(VENV)/bin/python -m pytest -n 2 \
			-m "backends and not tensorflow and not slow" || exit 1; \
	done

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
		|| (echo "Python 3.11 or newer is needed: make PYTHON=..." >&2; exit 2)
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(PIP) -e ".[train,demo,serve]"
	touch $@

# The parity tests compare with PyTorch; its CPU build is enough. timm comes without
# torchvision, whose released builds don't load beside that one.
$(VENV)/test-installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(PIP) -e ".[train,demo,serve,load,port,keras-hub,tpu-check,test]"
	$(PIP) --no-deps timm==1.0.31
	touch $@
