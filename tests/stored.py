"""Small stored models: a graph of one linear layer, alone or beside a classifier of torch with random weights."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pipeline.networks.artifact import append_head, write_facts
from pipeline.networks.unfamiliar import append_unfamiliarity, fit_references

SIZE = 8
THRESHOLD = 0.005  # of 1 - cosine: random pixels are further apart


def linear_graph(size, num_classes, seed=0, bias=None):
    """A graph: one linear layer on the pixels and a softmax. With a bias, every picture has the same probabilities."""
    shape = (size * size * 3, num_classes)
    weights = np.zeros(shape) if bias else np.random.default_rng(seed).normal(0, 1e-3, shape)
    constants = {"weights": weights, "bias": np.array(bias or [0.0] * num_classes)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["row"]),
        helper.make_node("Gemm", ["row", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["batch", num_classes])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv_graph(size, num_classes, seed=0):
    """A graph with the outputs of a network: a convolution, its averages as features, a linear head, and what stands for distances.

    `unfamiliarity` is the squared length of the features, multiplied and divided by a million: more than fp16 can hold on the way.
    """
    generator = np.random.default_rng(seed)
    constants = {
        "filters": generator.normal(0, 0.1, (6, 3, 3, 3)),
        "scale": np.array(1 / 16),
        "head": generator.normal(0, 2, (6, num_classes)),
        "bias": np.zeros(num_classes),
        "factor": np.array(1e6),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "filters"], ["responses"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["responses"], ["feature_map"]),
        helper.make_node("GlobalAveragePool", ["feature_map"], ["averages"]),
        helper.make_node("Flatten", ["averages"], ["features"]),
        helper.make_node("Gemm", ["features", "head", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
        helper.make_node("Mul", ["features", "factor"], ["large"]),
        helper.make_node("Mul", ["large", "features"], ["squares"]),
        helper.make_node("Div", ["squares", "factor"], ["small"]),
        helper.make_node("ReduceSum", ["small", "axis"], ["unfamiliarity"], keepdims=0),
    ]
    shapes = {"probs": [num_classes], "unfamiliarity": [], "features": [6], "feature_map": [6, size, size]}
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in shapes.items()],
        [
            *(numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_model(folder, class_names=("ants", "bees", "Käfer"), val_losses=(0.5,), seed=0, bias=None, learned="", familiar=None, graph=None):
    """Write a model folder, made without torch; its probabilities depend on every pixel and its place. `learned`: see `record_of`.

    `familiar`: pixels, uint8 (N, 8, 8, 3), whose neighbours are familiar to the model; without them it does not tell.
    """
    folder.mkdir(parents=True)
    preprocessing = {"image_size": SIZE, "crop": 1.0, "interpolation": "bicubic"}
    facts = {"model": folder.name, "class_names": list(class_names), "preprocessing": preprocessing, "learned": learned}
    history = [{"epoch": number, "val_loss": loss} for number, loss in enumerate(val_losses)]
    graph = graph or linear_graph(SIZE, len(class_names), seed, bias)
    if familiar is not None:
        graph.graph.node.append(helper.make_node("Identity", ["row"], ["features"]))
        graph.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", SIZE * SIZE * 3]))
        append_unfamiliarity(graph, fit_references(familiar.reshape(len(familiar), -1).astype(np.float32)), THRESHOLD)
        facts["unfamiliar"] = {"threshold": THRESHOLD, "false_alarm_rate": 0.05}
    write_facts(folder, graph, facts, history)
    return folder


def write_colours(folder):
    """Write a model folder whose network is worked by hand: its feature map is the pixels from 0 to 1, its features are their means.

    Red speaks for ants, green for bees; a picture whose blue is above one half on average is unfamiliar. Returns the folder.
    """
    folder.mkdir(parents=True)
    constants = {"white": np.array(255, np.float32), "blue": np.array(2), "twice": np.array(2, np.float32)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["channels", "white"], ["feature_map"]),
        helper.make_node("GlobalAveragePool", ["feature_map"], ["means"]),
        helper.make_node("Flatten", ["means"], ["features"]),
        helper.make_node("Gather", ["features", "blue"], ["blueness"], axis=1),
        helper.make_node("Mul", ["blueness", "twice"], ["unfamiliarity"]),
    ]
    shapes = {"features": [3], "feature_map": [3, SIZE, SIZE], "unfamiliarity": []}
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    weight = np.array([[4, 0, 0], [0, 4, 0]], np.float32)
    facts = {"class_names": ["ants", "bees"], "preprocessing": {"image_size": SIZE, "crop": 1.0, "interpolation": "bicubic"}}
    write_facts(folder, append_head(model, weight, np.zeros(2, np.float32), 1.0), facts, [{"epoch": 0, "val_loss": 0.5}])
    return folder


def write_classifier(root, network, image_size=64):
    """Write a backbone with random weights below a project's root, and on it the model `small` of the classes ants and bees.

    Its graph is not that of the network but a linear layer: an export takes seconds.
    """
    import torch

    from pipeline.core.files import sha256_of_file
    from pipeline.networks.classifier import Classifier, load_backbone, save_classifier
    from pipeline.stages import backbone

    backbone.run(backbone.Params(seed=0, name=network, weights="none", digest=None), root / "models/backbone")
    body, num_features = load_backbone(root / "models/backbone")
    torch.manual_seed(0)
    folder = root / "models/small"
    folder.mkdir()
    save_classifier(Classifier(body, num_features, 2), folder / "model.safetensors")
    facts = {
        "class_names": ["ants", "bees"],
        "preprocessing": {"image_size": image_size, "crop": 1.0, "interpolation": "bicubic"},
        "params": {"l2_grid": [0.1]},
        "inputs_sha256": {"architecture": sha256_of_file(root / "models/backbone/backbone.json")},
    }
    write_facts(folder, linear_graph(image_size, 2), facts, [{"epoch": 0, "val_loss": 0.5}])
