"""`pipeline verify`: a model file that changed after it was described is refused, and so is a stray, which `mend --strays` removes."""

import pytest

from pipeline.__main__ import main
from pipeline.commands.show import verify_all
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, sha256_of_file, write_json
from tests.stored import write_model


def test_a_changed_model_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_model(tmp_path / "models/finetuned") / "model.onnx"
    write_json(tmp_path / "results/finetuned/scores.json", {"model_sha256": sha256_of_file(path)})
    assert len(verify_all()) == 1
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(PipelineError, match=rf"^models/finetuned/model\.onnx: .*{sha256_of_file(path)}"):
        verify_all()


def test_strays_are_named_and_removed_on_request_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "params.yaml").write_text("models: {head: {regime: frozen}}\n")
    for name in ("head", "old"):
        folder = write_model(tmp_path / "models" / name)
        facts = {**read_json(folder / "model.json"), "model": name}
        write_json(folder / "model.json", facts)
        write_json(tmp_path / "results" / name / "scores.json", {"model": name, "model_sha256": facts["model_sha256"]})
        write_json(tmp_path / "metrics" / f"{name}.json", {name: {"log_loss": 0.5}})
    write_json(tmp_path / "metrics/comparison.json", {"models": {}})
    write_json(tmp_path / "metrics/mine.json", {"field_accuracy": 0.5})
    write_json(tmp_path / "models/theirs/model.json", {"framework": "another"})
    with pytest.raises(PipelineError, match=r"^models/old: .*`pipeline mend --strays`"):
        verify_all()
    main(["mend"])
    assert (capsys.readouterr().out, (tmp_path / "models/old").exists()) == ("", True)
    main(["mend", "--strays"])
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["metrics/old.json", "models/old", "results/old"]
    left = {path.relative_to(tmp_path).as_posix() for room in ("models", "results", "metrics") for path in (tmp_path / room).iterdir()}
    assert left == {"models/head", "models/theirs", "results/head", "metrics/head.json", "metrics/comparison.json", "metrics/mine.json"}
