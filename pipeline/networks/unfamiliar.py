"""How unfamiliar a picture is: the distance of its features from those of train pictures, over a threshold set on val pictures.

The distance is that to the k-th nearest train picture, as 1 - cosine: k nearest neighbours on normalised features (Sun et al., 2022).
docs/unfamiliar.md compares it with others. The threshold is the conformal quantile of the distances of val pictures: of new pictures of
the same kind, at most the stated share is above it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.arrays import release
from pipeline.pictures.images import Array

if TYPE_CHECKING:
    import onnx

MOST_REFERENCES = 1000  # train pictures that a model is compared with; each takes 4 D bytes of model.onnx
_NEIGHBOUR_SHARE, _LEAST_NEIGHBOURS = 0.01, 5  # k, as a share of the references, and at least
_LEAST_NORM = 1e-12
_LEAST_THRESHOLD = 1e-6  # of float32: pictures that are all alike
_ROUNDING = 1e-9
_BLOCK = 4096  # features that are worked on at once


@dataclass(frozen=True)
class References:
    """Train pictures from which distances are measured. `features`: of length 1, float32 (M, D); `neighbours`: k."""

    features: Array
    neighbours: int

    def distances(self, features: Array) -> Array:
        """1 - cosine to the k-th nearest reference, float32 (N,), of features, float (N, D), which may be a memory map."""
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(features), _BLOCK):
            similarities = normalise(features[start : start + _BLOCK]) @ self.features.T
            parts.append(np.maximum(0, 1 - np.partition(similarities, -self.neighbours, axis=1)[:, -self.neighbours]))
            release(features)
        return np.concatenate(parts)


def choose_references(labels: Sequence[int] | Array, most: int = MOST_REFERENCES) -> Array:
    """At most so many positions in `labels`, int (pictures,), sorted: evenly over the classes, and within each evenly from first to last.

    Classes with few pictures give all of theirs, and the others share what is left.
    """
    numbers, counts = np.unique(np.asarray(labels), return_counts=True)
    shares, left = np.zeros(len(numbers), int), min(most, len(labels))
    for done, index in enumerate(np.argsort(counts, kind="stable")):  # the rarest first
        shares[index] = min(counts[index], left // (len(numbers) - done))
        left -= shares[index]
    places = [
        np.flatnonzero(np.asarray(labels) == number)[np.linspace(0, count - 1, share).astype(int)]
        for number, count, share in zip(numbers, counts, shares, strict=True)
    ]
    return np.sort(np.concatenate(places))


def fit_references(features: Array) -> References:
    """The references with these features, float (M, D). k is a hundredth of their number, at least five, or all of fewer."""
    neighbours = max(_LEAST_NEIGHBOURS, round(_NEIGHBOUR_SHARE * len(features)))
    return References(normalise(features), min(neighbours, len(features)))


def normalise(features: Array) -> Array:
    """Features of length 1: float32 (N, D)."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norms, _LEAST_NORM), np.float32)


def conformal_quantile(distances: Array, groups: Sequence[str], rate: float) -> float:
    """The least distance that a picture of a new group exceeds with a probability of at most `rate`; infinite with too few groups.

    If every group is one of n pictures, it is the `ceil((n + 1) (1 - rate))`-th smallest distance. Pictures of a group share its weight
    (Lee, Barber and Willett, 2023), as if one of them was drawn.
    """
    _, numbers, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.argsort(distances, kind="stable")
    weights = 1 / sizes[numbers[order]] / (len(sizes) + 1)
    enough = np.flatnonzero(weights.cumsum() >= 1 - rate - _ROUNDING)
    return float(distances[order[enough[0]]]) if len(enough) else math.inf


def add_unfamiliarity(
    graph: "onnx.ModelProto", references: References, distances: Array, groups: Sequence[str], rate: float
) -> dict[str, Any]:
    """Append the output `unfamiliarity` to a graph, and return its facts as `{"unfamiliar": facts}`.

    `distances`: of the val pictures, float (N,); `groups`: theirs; `rate`: of false alarms. Where there are too few val pictures for it,
    a printed sentence says so, and there are no output and no facts.
    """
    count, needed = len(set(groups)), math.ceil((1 - rate) / rate - _ROUNDING)
    if count < needed:
        kind = "val pictures" if count == len(groups) else "groups of val pictures"
        print(f"false_alarm_rate: {rate:g} needs {needed} {kind}, there are {count}; the model does not tell unfamiliar pictures")
        return {}
    threshold = float(f"{max(_LEAST_THRESHOLD, conformal_quantile(distances, groups, rate)):.6g}")
    append_unfamiliarity(graph, references, threshold)
    facts = {"method": "nearest neighbours", "neighbours": references.neighbours, "references": len(references.features)}
    return {
        "unfamiliar": {**facts, "threshold": threshold, "false_alarm_rate": rate, "val_pictures": len(groups), "val_groups": count},
    }


def append_unfamiliarity(graph: "onnx.ModelProto", references: References, threshold: float) -> None:
    """Append the output `unfamiliarity` (N,), behind `probs`: the distance over the threshold, computed from `features` (N, D)."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "references": np.ascontiguousarray(references.features.T),
        "ones": np.ones((references.features.shape[1], 1), np.float32),
        "least_norm": np.array(_LEAST_NORM, np.float32),
        "neighbours": np.array([references.neighbours]),
        "last": np.array(references.neighbours - 1),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
        "threshold": np.array(threshold, np.float32),
    }
    body = graph.graph
    body.initializer.extend([numpy_helper.from_array(value, f"familiarity.{name}") for name, value in constants.items()])

    def append(kind: str, inputs: Sequence[str], outputs: Sequence[str], axis: int | None = None) -> None:
        names = [f"familiarity.{name}" if name in constants else name for name in inputs]
        node = helper.make_node(kind, names, outputs, f"familiarity.{outputs[0]}")
        node.attribute.extend([] if axis is None else [helper.make_attribute("axis", axis)])
        body.node.append(node)

    append("Mul", ["features", "features"], ["squares"])
    append("MatMul", ["squares", "ones"], ["squared_norm"])  # a sum whose form is the same in every version of ONNX
    append("Sqrt", ["squared_norm"], ["norm"])
    append("Max", ["norm", "least_norm"], ["divisor"])
    append("Div", ["features", "divisor"], ["directions"])
    append("MatMul", ["directions", "references"], ["similarities"])
    append("TopK", ["similarities", "neighbours"], ["nearest", "nearest_numbers"], axis=1)
    append("Gather", ["nearest", "last"], ["similarity"], axis=1)
    append("Sub", ["one", "similarity"], ["rounded_distance"])
    append("Max", ["rounded_distance", "zero"], ["distance"])  # of a reference itself, rounding makes it negative
    append("Div", ["distance", "threshold"], ["unfamiliarity"])
    others = list(body.output)[1:]
    del body.output[1:]
    body.output.extend([helper.make_tensor_value_info("unfamiliarity", TensorProto.FLOAT, ["batch"]), *others])
