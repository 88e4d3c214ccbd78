# `make demo` and `make test` set up all they need in .venv/; what they need is Python >= 3.11 with its headers, and a
# C++17 compiler. Another Python: make test PYTHON=python3.12
#
# Three environments: .venv/demo holds what a user gets from `pip install .`, so that the demo shows exactly that,
# .venv/test an editable install with torch and the tools, and .venv/peers what trtseg is compared with.

DEMO := .venv/demo
TEST := .venv/test
PEERS := .venv/peers
BUILD_FILES := pyproject.toml setup.py $(wildcard csrc/*)
# What `make train` reads, a folder laid out as training/README.md says, and where it keeps its runs.
DATA := ../shared/data
RUNS := runs
# The model whose nets the shipped ones learn to imitate.
START := default
PACKAGE_FILES := $(shell find trtseg -type f -not -name '*.py[co]' -not -name '*.so')
PIP_INSTALL = bin/python -m pip install -qq --disable-pip-version-check

# Containers often set it, and then each of the many processes of the tests compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-versions test-gpu sanitize-gpu bench bench-peers peers bench-gpu gpu-kit gpu-extension lint train results clean

help:
	@echo 'make demo       install, get a CT, segment it, show the result'
	@echo 'make test       lint, types and all tests but the slow ones, which are make test-slow'
	@echo 'make test-versions  what users do, with the lowest and with the newest versions of all dependencies'
	@echo 'make test-gpu   the tests that need an NVIDIA GPU; without one they fail'
	@echo 'make sanitize-gpu  our kernels on a GPU under compute-sanitizer'
	@echo 'make bench-gpu  speed on a GPU, beside PyTorch and what the GPU can do (BENCH=OPTIONS)'
	@echo '                these three without a network: GPU_PYTHON=python3, which has what they need'
	@echo 'make gpu-kit    collect what an offline GPU machine needs for tests and benchmark (KIT_PYTHON, KIT_ARCHS)'
	@echo 'make bench      speed of the ops and of the cascade here (CT=FILE: on that CT)'
	@echo 'make bench-peers  speed from file to file beside nnU-Net, MONAI, PyTorch and ONNX Runtime, on the CTs in DATA'
	@echo '                (BENCH=OPTIONS); make peers installs these (2 GB)'
	@echo 'make lint       ruff and mypy'
	@echo 'make train      from CT slices to a model in runs/, as training/recipe.py says; an interrupted run resumes'
	@echo 'make results    train all methods and write the tables of docs/results.md; wants a GPU'
	@echo 'make clean      remove environments, builds, caches and demo/'

demo: $(DEMO)/installed
	@mkdir -p demo
	@$(DEMO)/bin/trtseg sample -o demo/ct.nii.gz >/dev/null || { \
	  echo 'No sample CT: going on with a phantom, which is made of formulas and shows that it runs, not how well.'; \
	  $(DEMO)/bin/trtseg sample --phantom -o demo/ct.nii.gz >/dev/null; }
	@$(DEMO)/bin/trtseg segment demo/ct.nii.gz -o demo/seg.nii.gz --report --preview --html
	@echo 'CT: demo/ct.nii.gz  labels: demo/seg.nii.gz  preview: demo/seg.png  report: demo/seg.json'
	@echo 'Open in a browser: demo/seg.html'

# Two at a time, each on a core of its own (tests/conftest.py). What takes long is apart.
test: lint
	$(TEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

test-slow: $(TEST)/installed
	$(TEST)/bin/python -m pytest -m slow

# In environments of their own, beside the package that is built for the tests; pip gets some 400 MB for each.
test-versions: $(TEST)/installed
	$(TEST)/bin/python tests/versions.py lowest .venv/lowest
	$(TEST)/bin/python tests/versions.py newest .venv/newest

# On a machine without a network: make test-gpu GPU_PYTHON=python3. docs/gpu.md says what that Python must have;
# the extension is built for it in place.
GPU_PYTHON = $(TEST)/bin/python
GPU_READY = $(if $(filter $(TEST)/bin/python,$(GPU_PYTHON)),$(TEST)/installed,gpu-extension)

test-gpu: $(GPU_READY)
	TRTSEG_REQUIRE_CUDA=1 $(GPU_PYTHON) -m pytest tests/gpu

sanitize-gpu: $(GPU_READY)
	for tool in memcheck racecheck initcheck synccheck; do tests/gpu/sanitize.sh $(GPU_PYTHON) $$tool || exit 1; done

bench-gpu: $(GPU_READY)
	$(GPU_PYTHON) -m benchmarks.gpu --json gpu.json $(BENCH)

# What an offline GPU machine lacks, in build/gpu-kit; see tests/gpu/kit/build.sh.
gpu-kit:
	tests/gpu/kit/build.sh

gpu-extension:
	TRTSEG_CUDA=1 $(GPU_PYTHON) setup.py build_ext --inplace

bench: $(TEST)/installed
	$(TEST)/bin/python -m benchmarks.ops
	$(TEST)/bin/python -m benchmarks.cascade "$${CT:-$$($(TEST)/bin/trtseg sample)}"

# In a quarter of an hour; an interrupted run goes on. docs/performance-peers.md says what it does.
bench-peers: $(TEST)/installed $(PEERS)/installed
	$(TEST)/bin/python -m benchmarks.compare $(DATA) --png build/compare/speed.png $(BENCH)

peers: $(PEERS)/installed

lint: $(TEST)/installed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy

# The way to the shipped model; its stages stand in training/recipe.py.
train: $(TEST)/installed
	$(TEST)/bin/python -m training.recipe --shared $(DATA) -o $(RUNS) --start $(START)

# The paper's table for our data.
results: $(RUNS)/kit.zip
	$(TEST)/bin/python -m training.compare $(RUNS)/kit.zip --out $(RUNS)/compare --jobs 8
	$(TEST)/bin/python -m training.results $(RUNS)/compare --into docs/results.md
$(RUNS)/kit.zip: | $(TEST)/installed
	$(TEST)/bin/python -m training.kit --shared $(DATA) -o $@

# `pip install .` copies through build/, where files linger that no longer exist in the source.
$(DEMO)/installed: $(DEMO)/bin/python $(BUILD_FILES) $(PACKAGE_FILES)
	@echo 'Installing trtseg into $(DEMO) ...'
	@rm -rf build/lib* build/bdist*
	@$(DEMO)/$(PIP_INSTALL) .
	@touch $@

# torch comes first and pinned: left to a dependency's range, pip may choose a build for another accelerator.
$(TEST)/installed: $(TEST)/bin/python $(BUILD_FILES)
	@echo 'Installing trtseg with its dev and train extras into $(TEST) ...'
	@$(TEST)/$(PIP_INSTALL) torch==2.13.0
	@$(TEST)/$(PIP_INSTALL) --editable '.[dev,train]'
	@touch $@

$(PEERS)/installed: $(PEERS)/bin/python benchmarks/peers/requirements.txt
	@echo 'Installing what trtseg is compared with into $(PEERS) ...'
	@$(PEERS)/$(PIP_INSTALL) -r benchmarks/peers/requirements.txt
	@touch $@

CHECK = import sys, sysconfig, os; \
  sys.version_info >= (3, 11) or sys.exit("is older than 3.11"); \
  os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")) or sys.exit("has no headers (python3-dev)"); \
  import venv, ensurepip

$(DEMO)/bin/python $(TEST)/bin/python $(PEERS)/bin/python:
	@command -v $${CXX:-c++} >/dev/null || { \
	  echo 'error: no C++ compiler found; install g++ or clang++, or set CXX' >&2; exit 1; }
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
	  command -v $$python >/dev/null || [ -n "$(PYTHON)" ] || continue; \
	  why=$$($$python -c '$(CHECK)' 2>&1) && { $$python -m venv $(@:/bin/python=) && exit 0 || exit 1; }; \
	  echo "$$python: $$(echo "$$why" | tail -n 1)"; \
	done >&2; \
	echo 'error: no Python >= 3.11 with venv and headers found; install one, or name it: make PYTHON=/path/to/python' >&2; \
	exit 1

clean:
	rm -rf .venv build demo *.egg-info .mypy_cache .ruff_cache .pytest_cache trtseg/_core*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
