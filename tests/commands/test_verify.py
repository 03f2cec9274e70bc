"""`pipeline verify`: a model file that changed after it was described is refused."""

import pytest

from pipeline.commands.show import verify_all
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file, write_json
from tests.stored import write_model


def test_a_changed_model_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_model(tmp_path / "models/finetuned") / "model.onnx"
    write_json(tmp_path / "results/finetuned/scores.json", {"model_sha256": sha256_of_file(path)})
    assert len(verify_all()) == 1
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(PipelineError, match=rf"^models/finetuned/model\.onnx: .*{sha256_of_file(path)}"):
        verify_all()
