"""The same graph at another accuracy level: what rounds activations to int8, or does not."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from .decoder import PACKED
from .ops import LINEAR_3, MICROSOFT
from .trunk import TRUNKS


def with_accuracy_level(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    """Return a copy that computes at `level`. Outside of the layers' one node its products are ONNX Runtime's own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _set_level(copy.graph.node, level)
    for function in copy.functions:
        if function.name in TRUNKS:
            _set_level(function.node, level)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type in TRUNKS and attribute.name == "accuracy_level":
                attribute.i = level
    kept = [function for function in copy.functions if function.name not in PACKED or function.name == LINEAR_3]
    del copy.functions[:]
    copy.functions.extend(kept)
    return copy


def _set_level(nodes: Iterable[onnx.NodeProto], level: int) -> None:
    for node in nodes:
        if node.op_type in PACKED:
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("accuracy_level", level)])
            if node.op_type != LINEAR_3:
                node.domain, node.op_type = MICROSOFT, PACKED[0]
