"""Other forms of a stored model: int8 and fp16 by ONNX Runtime, OpenVINO's IR, torch's exported program. Each is a folder of its own."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_table, sha256_of_file, write_json
from pipeline.networks.onnx_file import METADATA_KEY, ORT_FAULTS, data_path, open_session, read_onnx, run_in_parts
from pipeline.pictures.images import Array, Preprocessing

if TYPE_CHECKING:
    import onnx

# The file that is the form, and the package that makes it.
FORMS = {
    "int8": ("model.onnx", "onnxruntime"),
    "fp16": ("model.onnx", "onnxruntime"),
    "openvino": ("model.xml", "openvino"),
    "pt2": ("model.pt2", "torch"),
}
REFUSED = {
    "torchscript": "torch deprecates TorchScript; `--to pt2` writes what takes its place",
    "tflite": "litert-torch, which makes it, cannot be installed beside this project: the two need different versions of typing-extensions;"
    " choose `--to int8`, or run litert-torch in an environment of its own",
}
_SUMS = ("model_sha256", "data_sha256", "weights_sha256")  # of the files of the model that a form comes from
_BATCH = 4


@dataclass(frozen=True)
class Form:
    """An open form. `run`: from pixels, uint8 (N, S, S, 3), to its outputs by name, float32 (N, ...)."""

    preprocessing: Preprocessing
    outputs: Sequence[str]
    run: Callable[[Array], Mapping[str, Array]]

    def predict_pixels(self, pixels: Array) -> Array:
        """Probabilities, float32 (N, classes), of prepared pixels, uint8 (N, S, S, 3)."""
        return self.run(pixels)["probs"]


def make_form(kind: str, model: Path, backbone: Path, facts: Mapping[str, Any], calibration: Callable[[], Array], folder: Path) -> None:
    """Write a form of a model folder into an empty folder: the file of `FORMS` and model.json. Raises PipelineError.

    `facts`: of the model; the form stores them with its kind and the model's sha256. `backbone`: the folder whose network the model has,
    read for pt2 alone. `calibration`: pixels, uint8 (N, S, S, 3), from which int8 takes the range of each activation.
    """
    own = {key: value for key, value in facts.items() if key not in _SUMS}
    own |= {"form": kind, "exported_from": facts["model_sha256"]}
    if kind in ("int8", "fp16"):
        _write_reduced(kind, model, own, calibration, folder)
        return
    if kind == "openvino":
        _write_openvino(model, own, folder)
    else:
        _write_program(model, backbone, own, folder)
    path = folder / FORMS[kind][0]
    sums = {"model_sha256": sha256_of_file(path)}
    if (tensors := path.with_suffix(".bin")).is_file():
        sums["data_sha256"] = sha256_of_file(tensors)
    write_json(folder / "model.json", {**own, **sums})


def open_form(kind: str, folder: Path, facts: Mapping[str, Any], threads: int) -> Form:
    """Open a form that `make_form` wrote, in fp32 where it leaves a choice. `facts`: of its model. Raises PipelineError."""
    preprocessing, path = Preprocessing(**facts["preprocessing"]), folder / FORMS[kind][0]
    if kind == "openvino":
        return Form(preprocessing, *_open_openvino(path, threads))
    if kind == "pt2":
        return Form(preprocessing, *_open_program(path, threads))
    try:
        session = open_session(path, threads)
    except ORT_FAULTS as error:  # the converter to fp16 does not know every operator
        raise PipelineError(f"the form {kind}: ONNX Runtime refuses it: {_first_line(error)}; choose another form") from None
    names = [output.name for output in session.get_outputs()]
    return Form(preprocessing, names, lambda pixels: dict(zip(names, run_in_parts(session, names, pixels, threads), strict=True)))


def maker(kind: str) -> str:
    """The package that makes a form, with its version."""
    package = FORMS[kind][1]
    return f"{package} {version(package)}"


def _write_reduced(kind: str, model: Path, facts: Mapping[str, Any], calibration: Callable[[], Array], folder: Path) -> None:
    """Write model.onnx with smaller numbers, and all else that a model folder has but weights and golden answers."""
    from pipeline.networks.artifact import write_facts

    if data_path(model / "model.onnx").is_file():
        raise PipelineError(f"{model}: has 2 GB of weights or more, which ONNX Runtime cannot convert to {kind}; export openvino instead")
    graph = read_onnx(model / "model.onnx")
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"node_{number}"
    try:
        reduced = to_int8(graph, calibration(), folder) if kind == "int8" else to_fp16(graph)
    except (*ORT_FAULTS, ValueError, RuntimeError) as error:
        raise PipelineError(f"{model}: ONNX Runtime cannot convert it to {kind}: {_first_line(error)}; choose another form") from None
    write_facts(folder, reduced, facts, read_table(model / "history.csv"))


def to_fp16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Store weights in fp16 and compute in it up to the features. Inputs and outputs keep their types."""
    from onnx.utils import Extractor
    from onnxruntime.transformers.float16 import convert_float_to_float16

    outputs = [output.name for output in model.graph.output]
    if "features" not in outputs:
        return cast("onnx.ModelProto", convert_float_to_float16(model, keep_io_types=True))
    # What follows the features stays as it is. The converter's own list of exceptions would round whatever they hand on to each other.
    after = {name for node in model.graph.node if node.name in _after_features(model) for name in node.output}
    extractor = Extractor(model)
    body = extractor.extract_model(["pixels"], [name for name in outputs if name not in after])
    rest = extractor.extract_model(["features"], [name for name in outputs if name in after])
    converted = cast("onnx.ModelProto", convert_float_to_float16(body, keep_io_types=True))
    _append(rest, converted)
    ends = {output.name: output for output in [*converted.graph.output, *rest.graph.output]}
    del converted.graph.output[:]
    converted.graph.output.extend([ends[name] for name in outputs])
    return converted


def _append(rest: "onnx.ModelProto", model: "onnx.ModelProto") -> None:
    """Append the nodes of a graph and its constants, whose names become others."""
    constants = {tensor.name: f"after_features.{tensor.name}" for tensor in rest.graph.initializer}
    for tensor in rest.graph.initializer:
        tensor.name = constants[tensor.name]
    for node in rest.graph.node:
        node.input[:] = [constants.get(name, name) for name in node.input]
    model.graph.node.extend(rest.graph.node)
    model.graph.initializer.extend(rest.graph.initializer)


def to_int8(model: "onnx.ModelProto", pixels: Array, folder: Path) -> "onnx.ModelProto":
    """Compute in int8 up to the features: weights with a scale per channel, activations within the range that they have on these pixels.

    `pixels`: uint8 (N, S, S, 3); `folder`: for a temporary file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
        def __init__(self) -> None:
            self.batches = iter([pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)])

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch}

    path = folder / "quantised.onnx"
    with _quiet():
        quantize_static(
            model, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, nodes_to_exclude=_after_features(model),
        )  # fmt: skip
    quantised = onnx.load(path)
    path.unlink()
    return quantised


def _after_features(model: "onnx.ModelProto") -> list[str]:
    """The nodes that compute with the features: head, softmax, distances. They cost nothing, and rounding would change them most.

    None if the graph does not name its features.
    """
    known, names = {"features"}, []
    for node in model.graph.node:
        if known & set(node.input):
            known |= set(node.output)
            names.append(node.name)
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the quantiser logs: it advises how to call it, and warns of biases that it clips. What that costs is measured."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _import_openvino() -> Any:
    """OpenVINO, silent. Raises PipelineError if it is not installed."""
    # Its import reports home. Without the package that does so, it falls back on a stub of its own.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    try:
        import openvino
    except ImportError:
        raise PipelineError("openvino: the package is not installed; run `pip install -e '.[openvino]'`") from None
    return openvino


def _write_openvino(model: Path, facts: Mapping[str, Any], folder: Path) -> None:
    """Write model.xml, with the facts, and model.bin, whose weights are in fp16 as OpenVINO stores them by default."""
    openvino = _import_openvino()
    try:
        network = openvino.Core().read_model(model / "model.onnx")
    except RuntimeError as error:
        raise PipelineError(f"{model}: OpenVINO cannot read it: {_first_line(error)}; export int8 or fp16 instead") from None
    network.set_rt_info(json.dumps(facts, sort_keys=True), [METADATA_KEY])
    openvino.save_model(network, folder / "model.xml")


def _open_openvino(path: Path, threads: int) -> tuple[list[str], Callable[[Array], Mapping[str, Array]]]:
    """The names of its outputs, and the function that runs it."""
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = _import_openvino().Core().compile_model(path, "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(pixels: Array) -> Mapping[str, Array]:
        outputs = compiled(pixels)
        return {name: outputs[name] for name in names}

    return names, run


def _write_program(model: Path, backbone: Path, facts: Mapping[str, Any], folder: Path) -> None:
    """Write model.pt2: the network from pixels to a dict of outputs, with a free batch size. It contains no pickle."""
    import torch

    from pipeline.core.files import read_json
    from pipeline.networks.classifier import WithProbs, load_classifier, with_feature_map

    classifier = load_classifier(backbone, model, len(facts["class_names"]))
    feature_map = read_json(backbone / "backbone.json")["feature_map"]
    network = with_feature_map(WithProbs(classifier, facts["temperature"]), classifier.backbone, feature_map)

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return dict(zip(("probs", "features", "feature_map"), self.network(pixels), strict=False))

    size = facts["preprocessing"]["image_size"]
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            program = torch.export.export(Named().eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        raise PipelineError(f"{model}: torch cannot export it: {_first_line(error)}; export openvino instead") from None
    program._example_inputs = None  # they would be a pickle
    for graph in (module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)):
        for node in graph.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
    torch.export.save(program, folder / "model.pt2", extra_files={f"{METADATA_KEY}.json": json.dumps(facts, sort_keys=True)})


def _open_program(path: Path, threads: int) -> tuple[list[str], Callable[[Array], Mapping[str, Array]]]:
    """The names of its outputs, and the function that runs it."""
    import torch

    torch.set_num_threads(threads)
    program = torch.export.load(path)
    names = list(program.call_spec.out_spec.context)
    module = program.module()

    def run(pixels: Array) -> Mapping[str, Array]:
        with torch.inference_mode():
            return {name: tensor.numpy() for name, tensor in module(torch.from_numpy(np.ascontiguousarray(pixels))).items()}

    return names, run


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
