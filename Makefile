# make demo: the main job on real data. make test: linter, types and tests. make docs:
# the documentation's site. Each makes .venv, with what it needs, from Python 3.11 or newer.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
# what is imported is compiled then; all of it would take more than a minute
PIP := $(VENV)/bin/pip install --quiet --no-compile --disable-pip-version-check
# a file's tests share a process, and with it what they build
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist=loadgroup

# $(call timed,NAME,COMMAND): runs a command, and says how long it took
timed = @begin=$$(date +%s); $(2); code=$$?; \
	echo "$(1) took $$(( $$(date +%s) - begin )) s"; exit $$code

.PHONY: demo test test-slow test-backends test-nightly docs clean

demo: $(VENV)/demo-installed
	$(VENV)/bin/python training/demo.py --output=demo

test: $(VENV)/test-installed
	$(call timed,ruff,$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .)
	$(call timed,mypy,$(VENV)/bin/mypy)
	$(call timed,tests,$(PYTEST))

# what takes longer than a few seconds, and is part of every check; much of it waits
test-slow: $(VENV)/test-installed
	$(call timed,slow tests,$(PYTEST) -n 3 -m "slow and not nightly")

# JAX compiles much in tests, the same in many files, and computes little; the nightly
# ones optimize as usual
COMPILE_FAST := XLA_FLAGS="--xla_backend_optimization_level=0 \
	--xla_llvm_disable_expensive_passes=true" \
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(VENV)/jax-cache \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# what is true on every backend of Keras; KERAS_BACKEND=jax asks that one alone
BACKENDS := $(or $(KERAS_BACKEND),jax torch)
test-backends: $(BACKENDS:%=test-backend-%)
test-backend-%: $(VENV)/test-installed
	$(call timed,tests on $*,KERAS_BACKEND=$* $(COMPILE_FAST) $(PYTEST) \
		-m "backends and not tensorflow and not slow and not nightly")

# what is rare and long: by hand, and its last result stands in CONTRIBUTING.md
test-nightly: $(VENV)/test-installed
	$(call timed,nightly tests,$(PYTEST) -m nightly)
	$(call timed,soak,$(VENV)/bin/python serving/benchmark.py --preset=mae_tiny \
		--soak_minutes=10)
	$(MAKE) $(BACKENDS:%=test-nightly-%)
test-nightly-%: $(VENV)/test-installed
	$(call timed,slow and nightly tests on $*,KERAS_BACKEND=$* $(PYTEST) \
		-m "backends and not tensorflow and (slow or nightly)")

# the site, in site/; a broken link or a docstring that can't be read is an error
docs: $(VENV)/docs-installed
	$(call timed,the site,$(VENV)/bin/mkdocs build --strict --quiet)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
		|| (echo "Python 3.11 or newer is needed: make PYTHON=..." >&2; exit 2)
	$(PYTHON) -m venv $(VENV)

DEMO_EXTRAS := train,demo,serve
$(VENV)/demo-installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(call timed,installing,$(PIP) -e ".[$(DEMO_EXTRAS)]")
	touch $@

$(VENV)/docs-installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(call timed,installing,$(PIP) -e ".[docs]")
	touch $@

# The parity tests compare with PyTorch; its CPU build is enough. timm comes without
# torchvision, whose released builds don't load beside that one.
EXTRAS := train,hf,demo,serve,load,port,keras-hub,tpu-check,openvino,litert,onnx,test
$(VENV)/test-installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(call timed,installing,$(PIP) -e ".[$(EXTRAS)]" && $(PIP) --no-deps timm==1.0.31)
	touch $@
