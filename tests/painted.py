"""A tiny stored model that knows colours, made without training; pictures for it, and a server that answers with it.

It has all outputs. Its activation map is bright where the colour is.
"""

import io
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import uvicorn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from pipeline.networks.artifact import append_head, write_facts, write_golden
from pipeline.server.app import Settings, create_app
from pipeline.server.engine import load_served
from pipeline.server.page import OPEN_PATHS, page_router
from pipeline.server.uploads import Bounds

CLASSES = ("red", "green", "blue")
RED, BRIGHT_BLUE = (200, 10, 10), (150, 150, 255)
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


def load_all(folder, class_names=CLASSES):
    """The loaded models by name: `painted`, `plain` without map and unfamiliarity, and `headless`, whose weights are missing."""
    write_painted(folder / "painted", class_names)
    write_painted(folder / "plain", with_map=False, with_unfamiliarity=False)
    write_painted(folder / "headless")
    (folder / "headless/model.safetensors").unlink()
    return {path.name: load_served(path.name, path, 1, "3") for path in sorted(folder.iterdir())}


def draw(colour, width=48, height=32):
    """A PNG: that colour in its upper half, and black below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = colour
    if sum(colour) > 500:
        pixels[:] = colour
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


@contextmanager
def running(engine, token=None, bounds=None):
    """The address of a server during the block."""
    settings = Settings(bounds or Bounds(), token, Settings.open_paths | OPEN_PATHS)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(engine, settings, [page_router()]), log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
