"""dvc.yaml lists all that a stage depends on: every module of ours, its own params, every model."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from pipeline.core.dvc import STAGES_WITH_FILES, rewrite_deps
from pipeline.core.params import parse_yaml
from pipeline.core.stage import import_closure

ROOT = Path(__file__).parent.parent
FLOW = parse_yaml((ROOT / "dvc.yaml").read_text())
ALL_STAGES, PLOTS = FLOW["stages"], FLOW["plots"]
STAGES = {name: stage for name, stage in ALL_STAGES.items() if name != "evaluate_baseline"}  # which repeats `evaluate`
PARAMS = parse_yaml((ROOT / "params.yaml").read_text())
BY_PATH = {"report": {"pipeline/serving/pyfunc.py"}}  # MLflow gets a script
SECTIONS = {"check_names": ["models"], "train": ["recipe", "models.${item.model}"], "report": ["evaluate", "models"]}


@cache
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
        if name in found or spec is None or spec.origin is None or name == "pipeline":  # whose `load_model` no stage calls
            continue
        found[name] = Path(spec.origin)
        for node in ast.walk(ast.parse(found[name].read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith("pipeline")]
    return {path.relative_to(ROOT).as_posix() for path in found.values() if path.name != "__init__.py"}


def code_deps(stage: str) -> list[str]:
    return [path for path in STAGES[stage]["deps"] if path.startswith("pipeline/")]


def is_below(path: str, dep: str) -> bool:
    return path == dep or path.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_module_that_it_imports(stage):
    deps = code_deps(stage)
    assert all((ROOT / dep).exists() for dep in deps)
    assert [path for path in modules_seen_by_python(stage) if not any(is_below(path, dep) for dep in deps)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_room_that_it_does_not_use(stage):
    used = modules_seen_by_python(stage) | BY_PATH.get(stage, set())
    assert [dep for dep in code_deps(stage) if not any(is_below(path, dep) for path in used)] == []


def test_mlflow_gets_a_script_by_its_path():
    """The report depends on the room `serving` although it imports nothing from there."""
    assert "pipeline/serving/pyfunc.py" in (ROOT / "pipeline/tracking/publish.py").read_text()


@pytest.mark.parametrize("stage", STAGES_WITH_FILES)
def test_a_stage_of_hours_lists_exactly_the_files_that_it_imports(stage):
    assert set(code_deps(stage)) == modules_seen_by_python(stage)


def test_the_lists_are_as_pipeline_deps_writes_them(tmp_path):
    text = (ROOT / "dvc.yaml").read_text()
    (tmp_path / "dvc.yaml").write_text(text)
    assert not rewrite_deps(tmp_path / "dvc.yaml")
    (tmp_path / "dvc.yaml").write_text(re.sub(r"      - pipeline/networks/zoo.py\n", "", text).replace("core/stage.py", "core/old.py"))
    assert rewrite_deps(tmp_path / "dvc.yaml")
    assert (tmp_path / "dvc.yaml").read_text() == text


@pytest.mark.parametrize("stage", STAGES)
def test_the_digest_of_the_code_covers_the_same_modules(stage):
    assert set(import_closure(f"pipeline.stages.{stage}")) == modules_seen_by_python(stage)


def test_the_one_init_file_imports_nothing_before_it_is_asked_and_so_need_not_be_a_dependency():
    [path] = (ROOT / "pipeline").rglob("__init__.py")
    body = ast.parse(path.read_text()).body
    assert [type(node) for node in body] == [ast.Expr, ast.ImportFrom, ast.If, ast.Assign, ast.FunctionDef]
    assert (body[1].module, ast.unparse(body[2].test)) == ("typing", "TYPE_CHECKING")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_its_own_section_and_the_shared_params_that_it_takes(stage):
    fields = importlib.import_module(f"pipeline.stages.{stage}").Params.model_fields
    wanted = [name for name in ("seed", "threads", "processes", "false_alarm_rate") if name in fields]
    assert STAGES[stage]["params"] == [*wanted, *SECTIONS.get(stage, [stage])]


@pytest.mark.parametrize("stage", STAGES)
def test_every_data_dependency_is_written_by_another_stage_or_tracked(stage):
    written = [
        out if isinstance(out, str) else next(iter(out)) for s in STAGES.values() for out in (*s.get("outs", []), *s.get("metrics", []))
    ]
    written += [out.replace("${item.model}", model) for out in written for model in ("baseline", *PARAMS["models"])]
    written += [Path(out).parent.as_posix() for out in written]
    data = [path for path in STAGES[stage]["deps"] if not path.startswith("pipeline/")]
    places = [{path, path.replace("${item.model}", "baseline"), Path(path).parent.as_posix()} for path in data]  # its own, or its folder
    assert [place for place in places if not place & set(written)] == []


def test_every_entry_of_models_is_trained_evaluated_and_reported():
    assert STAGES["train"]["matrix"] == STAGES["evaluate"]["matrix"] == {"model": "${models}"}
    data = ["data/source.json", "data/audit.json", "data/manifest.csv", "data/splits/train", "data/splits/val"]
    data += ["data/embeddings/embedding.json"]
    found = [path for path in STAGES["report"]["deps"] if not path.startswith("pipeline/")]
    assert found == [*data, "models", "results"]  # whole folders: whatever lies below


def test_no_folder_that_an_entry_names_is_removed_before_the_names_are_checked():
    """DVC removes the outs of a stage before it runs the stage, so the check is a stage before all those that an entry names."""
    assert set(STAGES["check_names"]["outs"]) <= set(STAGES["train"]["deps"])
    named = [name for name, stage in STAGES.items() if stage.get("matrix")]
    assert [name for name in named if not {"data/names.txt", "models/${item.model}"} & set(STAGES[name]["deps"])] == []


def test_a_name_of_an_entry_reaches_the_shell_quoted():
    """DVC quotes the values of a mapping, and no other."""
    assert [stage["cmd"] for stage in ALL_STAGES.values() if re.search(r"\$\{(?!item\})", stage["cmd"])] == []


def test_the_baseline_is_evaluated_as_every_other_model():
    assert ALL_STAGES["evaluate_baseline"] == {**STAGES["evaluate"], "matrix": {"model": ["baseline"]}}


def test_the_report_depends_on_its_templates_by_their_folder():
    templates = [path for path in (ROOT / "pipeline").rglob("*.html") if "{%" in path.read_text(encoding="utf-8")]
    assert {path.parent for path in templates} == {ROOT / "pipeline/report"}
    assert "pipeline/report" in STAGES["report"]["deps"]


@pytest.mark.parametrize("stage", STAGES)
def test_download_and_backbone_alone_can_fetch(stage):
    assert ("pipeline/net/fetch.py" in modules_seen_by_python(stage)) == (stage in ("download", "backbone"))


def test_every_plot_is_of_the_baseline_or_of_an_entry_of_models():
    plots = [plot if isinstance(plot, str) else next(iter(plot.values())) for plot in PLOTS]
    paths = [path for plot in plots for path in ([plot] if isinstance(plot, str) else plot["y"])]
    shown = [path.split("/")[1] for path in paths if path.startswith(("models/", "results/"))]
    assert len(shown) == len(paths) - 1  # but for report/curves.png, which shows all of them
    assert set(shown) <= {"baseline", *PARAMS["models"]}
