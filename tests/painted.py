"""A tiny stored model that knows colours, made without training: it has all outputs, and its activation map is where the colour is."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from pipeline.networks.artifact import append_head, write_facts, write_golden

CLASSES = ("red", "green", "blue")
_CELL = 8  # pixels a side of one value of the feature map
_SHARPNESS = 6.0  # of the probabilities


def _body(size, with_map, with_unfamiliarity):
    """The feature map is the mean red, green and blue of each cell, the features are its mean; a bright picture is unfamiliar."""
    constants = {"white": np.float32(255), "cells": np.array([2, 3]), "channels": np.array([1]), "half": np.float32(0.5)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["numbers", "white"], ["shares"]),
        helper.make_node("Transpose", ["shares"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["feature_map"], kernel_shape=[_CELL] * 2, strides=[_CELL] * 2),
        helper.make_node("ReduceMean", ["feature_map", "cells"], ["features"], keepdims=0),
        helper.make_node("ReduceMean", ["features", "channels"], ["brightness"], keepdims=0),
        helper.make_node("Div", ["brightness", "half"], ["unfamiliarity"]),
    ]
    cells = size // _CELL
    shapes = {"features": [3]} | ({"feature_map": [3, cells, cells]} if with_map else {})
    shapes |= {"unfamiliarity": []} if with_unfamiliarity else {}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in shapes.items()]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", size, size, 3])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "painted", [pixels], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_painted(folder, class_names=CLASSES, size=32, with_map=True, with_unfamiliarity=True):
    """Write its model folder. The first three classes are red, green and blue, whatever their names are; others are never likely.

    A picture whose mean brightness is above a half is unfamiliar.
    """
    folder.mkdir(parents=True)
    weight = np.zeros((len(class_names), 3), np.float32)
    weight[:3] = _SHARPNESS * np.eye(3)
    bias = np.array([0.0] * 3 + [-float(number) for number in range(1, len(class_names) - 2)], np.float32)
    save_file({"head.weight": weight, "head.bias": bias}, folder / "model.safetensors")
    preprocessing = {"image_size": size, "crop": 1.0, "interpolation": "bilinear"}
    facts = {"model": folder.name, "class_names": list(class_names), "preprocessing": preprocessing, "learned": ""}
    if with_unfamiliarity:
        facts["unfamiliar"] = {"method": "brightness", "threshold": 0.5, "false_alarm_rate": 0.05, "val_pictures": 20}
    model = append_head(_body(size, with_map, with_unfamiliarity), weight, bias, 1.0)
    write_facts(folder, model, facts, [{"epoch": 0, "val_loss": 0.5}])
    write_golden(folder, 1)
    return folder
