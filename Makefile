# make run: set up and run the pipeline.  make test: set up and pass the checks and the tests: the short ones in two processes,
# then those that run whole pipelines, which use all cores themselves.
# make check: the linters, the type checker, known faults of the pinned packages.  make crash: a hundred kills.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A torch that this Python has already is used instead of a second one.
TORCH_LINES := ^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==
HAS_TORCH := $(shell $(PYTHON) -c "import torch, torchvision" 2>/dev/null && echo yes)

.PHONY: run test check crash setup lock
run: $(READY)
	@pipeline mend
	dvc repro
	@pipeline results

test: check
	python -m pytest -m "not e2e" -n 2 --dist loadfile --cov --cov-report=
	python -m pytest -m e2e -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	ruff check
	ruff format --check
	mypy
	mypy bench/*.py .ci/*.py
	python .ci/packages.py

crash: $(READY)
	python -m tests.crash 100

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(if $(HAS_TORCH),--system-site-packages) $(VENV)
	$(if $(HAS_TORCH),grep -vE '$(TORCH_LINES)',cat) requirements.lock > $(VENV)/requirements.txt
	python -m pip install --quiet --no-deps -r $(VENV)/requirements.txt
	python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

lock:
	python -m pip install --quiet uv
	uv pip compile --quiet --universal --all-extras --upgrade --python-version 3.11 --no-header --no-annotate pyproject.toml -o requirements.lock
