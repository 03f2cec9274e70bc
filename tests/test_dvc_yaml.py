"""dvc.yaml says all that a stage depends on: every module of ours, its own params, every model."""

import ast
import importlib
from pathlib import Path

import pytest

from pipeline.core.params import parse_yaml
from pipeline.core.stage import import_closure

ROOT = Path(__file__).parent.parent
FLOW = parse_yaml((ROOT / "dvc.yaml").read_text())
ALL_STAGES, PLOTS = FLOW["stages"], FLOW["plots"]
STAGES = {name: stage for name, stage in ALL_STAGES.items() if name != "evaluate_baseline"}  # which repeats `evaluate`
PARAMS = parse_yaml((ROOT / "params.yaml").read_text())
SECTIONS = {"train": ["recipe", "models.${item.model}"], "report": ["evaluate", "models"]}


def modules_seen_by_python(stage: str) -> set[str]:
    """Every file of ours that a stage imports, found with Python's own import machinery instead of by paths."""
    found: dict[str, Path] = {}
    waiting = [f"pipeline.stages.{stage}"]
    while waiting:
        name = waiting.pop()
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if name in found or spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin)
        for node in ast.walk(ast.parse(found[name].read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith("pipeline")]
    return {path.relative_to(ROOT).as_posix() for path in found.values() if path.name != "__init__.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_module_that_it_imports_and_on_no_other(stage):
    listed = {path for path in STAGES[stage]["deps"] if path.endswith(".py")}
    assert listed == modules_seen_by_python(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_the_sum_of_the_code_covers_the_same_modules(stage):
    assert set(import_closure(f"pipeline.stages.{stage}")) == modules_seen_by_python(stage)


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_an_init_file_holds_a_docstring_alone_and_so_need_not_be_a_dependency(path):
    assert [type(node) for node in ast.parse(path.read_text()).body] == [ast.Expr]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_its_own_section_and_the_shared_params_that_it_takes(stage):
    fields = importlib.import_module(f"pipeline.stages.{stage}").Params.model_fields
    wanted = [name for name in ("seed", "threads") if name in fields]
    assert STAGES[stage]["params"] == [*wanted, *SECTIONS.get(stage, [stage])]


@pytest.mark.parametrize("stage", STAGES)
def test_every_data_dependency_is_written_by_another_stage_or_tracked(stage):
    written = [
        out if isinstance(out, str) else next(iter(out)) for s in STAGES.values() for out in (*s.get("outs", []), *s.get("metrics", []))
    ]
    written += [out.replace("${item.model}", model) for out in written for model in ("baseline", *PARAMS["models"])]
    written += [Path(out).parent.as_posix() for out in written]
    data = [path for path in STAGES[stage]["deps"] if not path.endswith((".py", ".html"))]
    assert [path for path in data if path not in written and path.replace("${item.model}", "baseline") not in written] == []


def test_every_entry_of_models_is_trained_evaluated_and_reported():
    assert STAGES["train"]["matrix"] == STAGES["evaluate"]["matrix"] == {"model": "${models}"}
    data = ["data/source.json", "data/audit.json", "data/manifest.csv", "data/splits/train", "data/splits/val"]
    found = [path for path in STAGES["report"]["deps"] if not path.endswith((".py", ".html"))]
    assert found == [*data, "models", "results"]  # whole folders: whatever lies below


def test_the_baseline_is_evaluated_as_every_other_model():
    assert ALL_STAGES["evaluate_baseline"] == {**STAGES["evaluate"], "matrix": {"model": ["baseline"]}}


def test_the_report_depends_on_its_templates():
    templates = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline/evaluation").glob("*.html"))
    assert [path for path in STAGES["report"]["deps"] if path.endswith(".html")] == templates


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_but_download_and_backbone_can_fetch(stage):
    fetches = "pipeline/data/fetch.py" in STAGES[stage]["deps"]
    assert not fetches or stage in ("download", "backbone")


def test_every_plot_is_of_the_baseline_or_of_an_entry_of_models():
    plots = [plot if isinstance(plot, str) else next(iter(plot.values())) for plot in PLOTS]
    paths = [path for plot in plots for path in ([plot] if isinstance(plot, str) else plot["y"])]
    shown = [path.split("/")[1] for path in paths if path.startswith(("models/", "results/"))]
    assert len(shown) == len(paths) - 1  # but for report/curves.png, which shows all of them
    assert set(shown) <= {"baseline", *PARAMS["models"]}
