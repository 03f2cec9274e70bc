"""The connection to Ray: what it is asked for, what it prints, how its faults are reported; its users' tests run Ray itself."""

import os
import sys
from types import SimpleNamespace

import pytest

from pipeline.core.cluster import connected
from pipeline.core.errors import PipelineError
from tests.checkout import ROOT


@pytest.fixture
def ray(monkeypatch):
    """A module in place of ray; `calls`: what it was asked for."""
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": "head:6379"})
    calls = []
    module = SimpleNamespace(
        calls=calls,
        init=lambda **options: calls.append(options),
        shutdown=lambda: calls.append("shutdown"),
        cluster_resources=lambda: {"CPU": 64.0},
        exceptions=SimpleNamespace(RayError=type("RayError", (Exception,), {})),
    )
    monkeypatch.setitem(sys.modules, "ray", module)
    return module


def test_a_cluster_gets_the_code_and_is_left_at_the_end(ray):
    with connected(2):
        (options,) = ray.calls
    assert options["address"] == "head:6379"
    assert options["runtime_env"] == {"py_modules": [str(ROOT / "pipeline")]}
    assert ray.calls[1:] == ["shutdown"]


def test_what_ray_prints_is_not_among_the_rows(ray, capsys):
    with connected(2):
        print("(raylet) a machine was lost")
    print("a row")
    assert capsys.readouterr() == ("a row\n", "ray: 64 CPUs, head:6379\n(raylet) a machine was lost\n")


def test_a_cluster_that_does_not_answer_is_one_line(ray):
    def refuse(**_):
        raise ConnectionError("no\nanswer")

    ray.init = refuse
    with (
        pytest.raises(PipelineError, match=r"^RAY_ADDRESS: head:6379: no Ray cluster answers; start it, or unset the variable$"),
        connected(2),
    ):
        pass


def test_a_fault_on_a_machine_is_its_last_line(ray):
    with pytest.raises(PipelineError, match=r"^ray: a\.onnx: is missing$"), connected(2):
        raise ray.exceptions.RayError("The actor died\n  File a.py\npipeline.core.errors.PipelineError: a.onnx: is missing\n")
