# make run: set up and run the pipeline.
# make test: set up, then the checks and the tests, within ten minutes on two cores.  make test-all: the slow tests, too.
# make check: the linters, the type checker, known vulnerabilities of the pinned packages.
# make bench: compare the speed with that of others, for an hour or two.  make setup: .venv alone.  make lock: pin the newest packages.
# make canary: the tests of tracking with the newest MLflow, without a change of .venv.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BENCH_READY := .cache/bench/.ready

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export OMP_WAIT_POLICY := passive
export SHELL  # make's, /bin/sh: DVC runs the stages in it, and a service's own may refuse
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A torch that this Python has already is used instead of a second one; that of an activated environment does not count.
TORCH_LINES := ^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==
HAS_TORCH := $(shell $(PYTHON) -c "import sys, torch, torchvision; assert sys.prefix == sys.base_prefix" 2>/dev/null && echo yes)

# Whole files go to one of four processes, of which some often wait; the longest run first, see tests/conftest.py.
PYTEST := python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations 10

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate pyproject.toml

.PHONY: run test tests test-all check bench setup lock canary
run: $(READY)
	@pipeline mend
	dvc repro
	@pipeline results

tests test-all: export PYTHONDONTWRITEBYTECODE :=  # or each process that a test starts compiles the pipeline again
test: check tests
tests: $(READY)
	$(PYTEST) -m "not slow" --cov --cov-report=

test-all: check
	$(PYTEST) --cov --cov-report=

check: $(READY)
	ruff check
	ruff format --check
	mypy pipeline bench/*.py .ci/*.py
	python .ci/packages.py

bench: $(BENCH_READY)
	-python bench/startup.py
	python bench/run.py --tuned

# The packages of the others stay out of .venv.
$(BENCH_READY): bench/requirements.lock $(READY)
	rm -rf $(@D)
	python -m pip install --quiet --no-deps --target $(@D) -r $<
	touch $@

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(if $(HAS_TORCH),--system-site-packages) $(VENV)
	grep -vE '$(TORCH_LINES)' requirements.lock > $(VENV)/requirements.txt
	$(if $(HAS_TORCH),,grep -E '$(TORCH_LINES)' requirements.lock > $(VENV)/torch.txt)
	# Side by side, since pip unpacks one package after the other, and torch with its libraries takes as long as all others.
	ls $(VENV)/*.txt | xargs -n 1 -P 2 python -m pip install --quiet --no-deps --no-compile -r
	# In parallel, which pip does not do. Some packages contain files for other Pythons, which do not compile.
	python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

lock:
	python -m pip install --quiet uv
	$(COMPILE) --extra dev --upgrade -o requirements.lock
	$(COMPILE) --extra bench --constraints requirements.lock | grep -vxFf requirements.lock > bench/requirements.lock

canary: $(READY)
	.ci/canary
