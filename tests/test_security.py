"""Nothing that is downloaded, stored or restored is ever run, shown by the calls in the code and by planted files."""

import argparse
import ast
import io
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf
from safetensors import SafetensorError

from pipeline.commands import upkeep
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256_of_file, write_json, write_table
from pipeline.core.params import parse_yaml, read_params
from pipeline.core.sections import read_section
from pipeline.net.store import stored
from pipeline.networks import embedding, weights, zoo
from pipeline.networks.artifact import read_facts, verify_model
from pipeline.networks.classifier import load_backbone, load_classifier
from pipeline.networks.onnx_file import open_session
from pipeline.pictures.images import BrokenPicture, decode
from pipeline.pictures.manifest import read_manifest
from pipeline.serving.predictor import Predictor
from pipeline.stages import split, train_baseline
from pipeline.tracking import contents
from pipeline.training import head
from pipeline.training.checkpoint import find_checkpoint

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "pipeline").rglob("*.py"))
TEMPLATES = sorted((ROOT / "pipeline").rglob("*.html"))

# What the code calls

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
REFUSED = {
    "eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "yaml.Loader", "yaml.CLoader", "yaml.FullLoader", "yaml.CFullLoader", "yaml.UnsafeLoader", "yaml.CUnsafeLoader",
    "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.utils.model_zoo.load_url", "torch.jit.load",
    "shutil.unpack_archive", "jinja2.Template", "markupsafe.Markup", "jinja2.Markup",
}  # fmt: skip
REFUSED_METHODS = {"extractall", "from_pretrained"}


def names_of(tree):
    """The full name of each imported name: numpy for `np`, torch.load for `load` after `from torch import load`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node, names):
    """`np.load` as numpy.load; the name of an attribute of a call or an item starts with a dot."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def is_told(call, keyword, value):
    """Whether a call has a keyword with exactly this value, written out."""
    return any(isinstance(k.value, ast.Constant) and repr(k.value.value) == repr(value) for k in call.keywords if k.arg == keyword)


def call_fault(call, name):
    """The rule that a call breaks by its arguments, or None."""
    given = {keyword.arg for keyword in call.keywords}
    if name == "torch.load" and not is_told(call, "weights_only", True):
        return "torch.load without weights_only=True"
    if name == "numpy.load" and (len(call.args) > 2 or "allow_pickle" in given) and not is_told(call, "allow_pickle", False):
        return "numpy.load with allow_pickle"
    if "shell" in given and not is_told(call, "shell", False):
        return "a shell"
    if "pretrained" in given and not is_told(call, "pretrained", False):
        return "weights that a library downloads"
    if name.startswith(("torchvision.", "timm.")) and "weights" in given and not is_told(call, "weights", None):
        return "weights that a library downloads"
    if name == "ruamel.yaml.YAML" and not is_told(call, "typ", "safe"):
        return "a YAML reader that is not the safe one"
    if name == "jinja2.Environment" and not is_told(call, "autoescape", True):
        return "names that are not escaped"
    return None


def faults(source):
    """Every rule that a module breaks."""
    tree = ast.parse(source)
    names, found = names_of(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import of {name}" for name in modules if name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.Attribute | ast.Name):
            name = full_name(node, names)
            if name in REFUSED or name.rpartition(".")[2] in REFUSED_METHODS or re.fullmatch(r"mlflow\..*load_model", name):
                found.append(name)
        elif isinstance(node, ast.Call) and (fault := call_fault(node, full_name(node.func, names))):
            found.append(fault)
    return found


def test_no_module_calls_what_runs_foreign_code():
    assert [(path.name, fault) for path in SOURCES for fault in faults(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "snippet",
    [
        *(f"import {name}" for name in sorted(PICKLES)), "from pickle import loads", "import joblib.numpy_pickle", "def f():\n import dill",
        "import torch\ntorch.load(p)", "import torch\ntorch.load(p, weights_only=False)", "import torch as t\nt.load(p, weights_only=w)",
        "from torch import load\nload(p)", "import torch\ntorch.hub.load('a', 'b')", "import torch.jit\ntorch.jit.load(p)",
        "import numpy as np\nnp.load(p, allow_pickle=True)", "import numpy\nnumpy.load(p, None, True)",
        "from numpy import load\nload(p, allow_pickle=x)",
        "import yaml\nyaml.load(t, Loader=yaml.SafeLoader)", "import yaml\nyaml.unsafe_load(t)", "import yaml\nyaml.full_load(t)",
        "from yaml import Loader\nLoader(t)", "import yaml\nclass L(yaml.FullLoader): pass", "import yaml as y\ny.UnsafeLoader(t)",
        "from ruamel.yaml import YAML\nYAML(typ='unsafe')", "from ruamel.yaml import YAML\nYAML()",
        "eval('1')", "exec('1')", "run = eval", "import os\nos.system('ls')", "from os import system\nsystem('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)", "from subprocess import Popen\nPopen('ls', shell=x)",
        "import mlflow\nmlflow.pyfunc.load_model('m')", "from mlflow.pytorch import load_model\nload_model('m')",
        "import timm\ntimm.create_model('a', pretrained=True)", "from timm import create_model as c\nc('a', pretrained=x)",
        "import torchvision\ntorchvision.models.resnet18(weights='DEFAULT')",
        "from torchvision.models import resnet18\nresnet18(weights=w)",
        "from transformers import AutoModel\nAutoModel.from_pretrained('a')",
        "archive.extractall()", "import zipfile\nzipfile.ZipFile(p).extractall(q)", "import shutil\nshutil.unpack_archive(p)",
        "from jinja2 import Environment\nEnvironment()", "import jinja2\njinja2.Environment(autoescape=False)",
        "from jinja2 import Template\nTemplate(t)", "from markupsafe import Markup\nMarkup(t)",
    ],
)  # fmt: skip
def test_a_call_that_runs_foreign_code_is_found(snippet):
    assert faults(snippet) != []


@pytest.mark.parametrize(
    "snippet",
    [
        "import torch\ntorch.load(p, weights_only=True)", "import numpy as np\nnp.load(p)", "import yaml\nyaml.safe_load(t)",
        "from ruamel.yaml import YAML\nYAML(typ='safe', pure=True)", "model.eval()",
        "import timm\ntimm.create_model('a', pretrained=False)",
        "import torchvision\ntorchvision.models.resnet18(weights=None)",
        "import subprocess\nsubprocess.run(['ls'])", "from jinja2 import Environment\nEnvironment(autoescape=True)",
    ],
)  # fmt: skip
def test_a_harmless_call_is_allowed(snippet):
    assert faults(snippet) == []


def test_the_modules_that_load_are_among_those_read():
    assert {"weights.py", "checkpoint.py", "onnx_file.py", "page.py", "params.py"} <= {path.name for path in SOURCES}


# What a page shows, and who may open it


def test_no_template_leaves_a_name_unescaped():
    assert "page.html" in {path.name for path in TEMPLATES}
    assert [path.name for path in TEMPLATES if re.search(r"\|\s*safe\b|autoescape", path.read_text(encoding="utf-8"))] == []


def test_nothing_is_offered_to_the_whole_network():
    # Within a container, whose port is published at 127.0.0.1 alone, a server must listen at its every address.
    files = [*(path for path in SOURCES if path.name != "docker.py"), *TEMPLATES, ROOT / "Makefile", ROOT / "README.md"]
    assert [path.name for path in files if "0.0.0.0" in path.read_text(encoding="utf-8")] == []
    docker = (ROOT / "pipeline/server/docker.py").read_text(encoding="utf-8")
    assert docker.count("0.0.0.0") == 1
    assert re.findall(r"-p (\S+:)8000", docker) == ["127.0.0.1:8000:"]


def test_the_page_of_mlflow_is_served_to_this_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("pipeline.tracking.connection.connect", lambda: None)
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    parser = argparse.ArgumentParser()
    upkeep.add_ui(parser.add_subparsers())
    parsed = parser.parse_args(["ui"])
    parsed.run(parsed)
    [(program, command, environment)] = started
    server = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert (program, command) == (
        sys.executable,
        [sys.executable, "-m", *server, "--host", "127.0.0.1", "--port", "5000", "--workers", "1"],
    )
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


# What is planted

TINY = zoo.Architecture("tiny", "torchvision", 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0, False)


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The folder that a planted pickle makes when it runs; it must not exist at the end. It is in the project's root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()


def legacy(payload):
    with io.BytesIO() as file:
        torch.save({"weight": payload}, file, _use_new_zipfile_serialization=False)
        return file.getvalue()


def zipped(payload):
    with io.BytesIO() as file:
        torch.save({"weight": payload}, file)
        return file.getvalue()


def array(payload):
    with io.BytesIO() as file:
        np.save(file, np.array([payload], dtype=object), allow_pickle=True)
        return file.getvalue()


FORMS = {"pickle": pickle.dumps, "old pickle": lambda payload: pickle.dumps(payload, 0), "legacy": legacy, "zip": zipped, "array": array}


@pytest.fixture(params=FORMS)
def plant(request, mark):
    """Write a pickle to a path, in each form in which libraries read one."""

    def write(path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FORMS[request.param](Payload(mark)))
        return path

    return write


def test_what_is_planted_would_run_where_pickles_are_loaded(tmp_path):
    for number, (name, form) in enumerate(FORMS.items()):
        (tmp_path / "planted").write_bytes(form(Payload(tmp_path / str(number))))
        if name == "array":
            np.load(tmp_path / "planted", allow_pickle=True)
        elif "pickle" in name:
            pickle.loads((tmp_path / "planted").read_bytes())
        else:
            torch.load(tmp_path / "planted", weights_only=False)
        assert (tmp_path / str(number)).exists()


def backbone_facts():
    return {
        "architecture": {**vars(TINY), "name": "mobilenet_v3_small"},
        "head_tensors": ["classifier.3.weight", "classifier.3.bias"],
        "num_features": 1024,
    }


def test_a_pickle_in_place_of_the_backbones_weights_is_not_run(plant):
    plant("models/backbone/weights.safetensors")
    write_json(Path("models/backbone/backbone.json"), backbone_facts())
    with pytest.raises(SafetensorError):
        load_backbone(Path("models/backbone"))
    with pytest.raises(SafetensorError):
        train_baseline.with_head(Path("models/backbone"), np.zeros((2, 3)), np.zeros(2))


def test_a_pickle_in_place_of_the_backbones_facts_is_not_run(plant):
    plant("models/backbone/backbone.json")
    with pytest.raises(ValueError):
        load_backbone(Path("models/backbone"))


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors", "bin"])
def test_a_pickle_in_place_of_a_weights_file_of_ones_own_is_not_run(plant, ending):
    path = plant(f"own.{ending}")
    with pytest.raises(PipelineError, match=r"^own\.\w+: .+safetensors"):
        weights.load_weights(torch.nn.Linear(3, 2).state_dict(), TINY, path.name, sha256_of_file(path))


def test_a_pickle_in_place_of_the_weights_of_the_package_is_not_run(plant, monkeypatch):
    path = plant("packaged.pth")
    monkeypatch.setattr(weights, "_packaged", lambda _: (path, "the package", "Apache-2.0"))
    with pytest.raises(PipelineError, match=r"^the package: "):
        weights.load_weights(torch.nn.Linear(3, 2).state_dict(), TINY, "packaged", None)


def test_a_pickle_in_place_of_a_file_in_the_store_is_removed(plant):
    path = plant(Path(".cache/store") / ("0" * 64))
    assert stored("0" * 64) is None
    assert not path.exists()


def test_a_pickle_in_place_of_weights_in_the_store_under_its_own_sum_is_not_run(plant, monkeypatch):
    path = plant(".cache/store/planted")
    sha256 = sha256_of_file(path)
    path.rename(path.with_name(sha256))
    monkeypatch.setattr(zoo, "torchvision_weights", lambda _: SimpleNamespace(url="http://127.0.0.1:9/tiny.pth", meta={}))
    with pytest.raises(PipelineError, match=r"^http://127\.0\.0\.1:9/tiny\.pth: "):
        weights.load_weights(torch.nn.Linear(3, 2).state_dict(), TINY, "pretrained", sha256)


def test_a_pickle_in_place_of_a_checkpoint_is_not_run(plant, capsys):
    checkpoint = find_checkpoint("finetuned", "0" * 64)
    plant(checkpoint.path)
    assert checkpoint.restore(None) == []
    assert capsys.readouterr().err.startswith(f"{checkpoint.path}: ")


def test_a_pickle_in_place_of_the_features_is_not_run(plant):
    plant("data/embeddings/features.npy")
    write_table(Path("data/embeddings/image_ids.csv"), ["image_id"], [{"image_id": "a.png"}])
    with pytest.raises((ValueError, TypeError)):
        head.read_examples(Path("data/embeddings"), [], [])


@pytest.mark.parametrize("name", ["data/embeddings/backbone.onnx", "models/finetuned/model.onnx"])
def test_a_pickle_in_place_of_a_graph_is_not_run(plant, name):
    path = plant(name)
    with pytest.raises(InvalidProtobuf):
        open_session(path, 1)
    with pytest.raises(InvalidProtobuf):
        Predictor.load(path, 1)


def test_a_pickle_in_place_of_a_graph_that_is_kept_is_not_run(plant, monkeypatch):
    Path("models/backbone").mkdir(parents=True)
    Path("models/backbone/weights.safetensors").write_bytes(b"weights")
    write_json(Path("models/backbone/backbone.json"), backbone_facts())
    monkeypatch.setattr(embedding, "sha256_of_json", lambda _: "key")
    path = plant(Path.cwd() / ".cache/onnx/key/backbone.onnx")
    assert embedding.export_backbone(Path("models/backbone"), 8, np.zeros((1, 8, 8, 3), np.uint8), 1) == path
    with pytest.raises(InvalidProtobuf):
        open_session(path, 1)


def test_a_pickle_in_place_of_a_shard_is_not_run(plant):
    plant("data/raw/pictures.tar")
    _, *outs = parse_yaml((ROOT / "dvc.yaml").read_text())["stages"]["split"]["cmd"].split()[3:]
    with pytest.raises(PipelineError, match=r"^data/raw/pictures\.tar: is damaged: "):
        split.run(read_section("split", split.Params, ROOT / "params.yaml"), Path("data/raw"), *map(Path, outs))
    assert not [out for out in outs if Path(out).exists()]


def test_a_pickle_in_place_of_a_picture_in_a_shard_is_not_run(plant):
    plant("a.jpg")
    with pytest.raises(BrokenPicture):
        decode(Path("a.jpg").read_bytes())


def test_a_pickle_in_place_of_the_weights_of_a_model_is_not_run(plant, monkeypatch):
    plant("models/finetuned/model.safetensors")
    monkeypatch.setattr("pipeline.networks.classifier.load_backbone", lambda _: (torch.nn.Flatten(), 3))
    with pytest.raises(SafetensorError):
        load_classifier(Path("models/backbone"), Path("models/finetuned"), 2)


def test_a_pickle_in_place_of_the_facts_of_a_model_is_not_run(plant):
    plant("models/finetuned/model.json")
    with pytest.raises(PipelineError, match=r"model.json: is damaged"):
        read_facts(Path("models/finetuned"))


def test_a_pickle_in_place_of_a_graph_that_is_verified_is_not_run(plant):
    path = plant("models/finetuned/model.onnx")
    write_json(Path("models/finetuned/model.json"), {"model_sha256": sha256_of_file(path)})
    with pytest.raises(DecodeError):
        verify_model(Path("models/finetuned"))


def test_a_pickle_in_place_of_the_manifest_is_not_run(plant):
    plant("data/manifest.csv")
    with pytest.raises((UnicodeDecodeError, KeyError)):
        read_manifest(Path("data/manifest.csv"))


TAGS = ["!!python/object/apply:os.mkdir ['{}']", "!!python/object/new:os.mkdir ['{}']", "!!python/name:os.mkdir", "!!python/module:os"]
UNKNOWN_TAG = r"is not YAML: line 1: could not determine a constructor for the tag 'tag:yaml\.org,2002:python/"


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_params_yaml_is_not_run(tag, mark):
    Path("params.yaml").write_text(f"seed: {tag.format(mark)}\n")
    with pytest.raises(PipelineError, match=rf"^params\.yaml: {UNKNOWN_TAG}"):
        read_params()


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_dvc_lock_is_not_run_by_a_publication(tag, mark, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("params.yaml").write_text("models: {own: {}}\n")
    Path("dvc.lock").write_text(f"stages: {tag.format(mark)}\n")
    with pytest.raises(PipelineError, match=rf"^dvc\.lock: {UNKNOWN_TAG}"):
        contents._stages_that_ran()
