"""A graph for ONNX Runtime Web, which has no fast MatMulNBits: its weights are unpacked once, when a session opens.

WebAssembly's kernel unpacks every block of every weight to float for each token: one token through [50304, 768] took
105 ms at 4 bits and 5.6 ms as a product with floats, through [3072, 768] 4.0 and 0.15 (onnxruntime-web 1.31, one thread
of an EPYC). So the packed codes become blocks of DequantizeLinear, over the same bytes of the same file, which the
session folds into floats where it is told ``session.disable_quant_qdq``.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from .decoder import KEEP
from .ops import DOMAIN, LINEAR_3, MICROSOFT, UNPACK_3, unpack_3_bits

# Those of Pythia 410m take 1.4 GB: its tab held 3.1 GB at most, of the 4 that WebAssembly addresses, and wrote ten
# times as fast as with packed weights.
UNPACKED_BYTES = 1_500_000_000
_CODES = {4: TensorProto.UINT4, 8: TensorProto.UINT8}
_PACKED = ("MatMulNBits", LINEAR_3)


def unpacked_bytes(model: onnx.ModelProto) -> int:
    """What the weights of the quantised linears take as floats."""
    packed = [node for node in model.graph.node if node.op_type in _PACKED]
    return 4 * sum(_number(node, "K") * _number(node, "N") for node in packed)


def require_keep(model: onnx.ModelProto) -> None:
    """Make num_logits_to_keep an input without a default, in place: ONNX Runtime Web cannot set one that has."""
    model.graph.input.append(helper.make_tensor_value_info(KEEP, TensorProto.INT64, []))
    kept = [tensor for tensor in model.graph.initializer if tensor.name != KEEP]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def unpack(model: onnx.ModelProto) -> None:
    """Replace each product with weights of 3, 4 or 8 bits by DequantizeLinear and a product of floats, in place. Those
    of 2 bits, which no type of ONNX's opset holds, stay."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        made = _product(node, tensors) if node.op_type in _PACKED else None
        nodes += made or [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors.values())
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    functions = [*model.functions, unpack_3_bits()]
    del model.functions[:]
    model.functions.extend(function for function in functions if function.name in called)


def _product(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto] | None:
    K, N, bits, block = (_number(node, name) for name in ("K", "N", "bits", "block_size"))
    x, codes, scales, zero_points, _, bias = (list(node.input) + [""] * 3)[:6]
    blocks = K // block
    whole = K % block == 0 and (not zero_points or blocks * bits % 8 == 0)  # neither rows nor their zeros are padded
    if node.op_type == LINEAR_3 and K % block == 0:
        made = [f"{node.name}/Codes", f"{node.name}/ZeroPoints"]
        unpacked = helper.make_node(UNPACK_3, [codes, scales, zero_points], made, name=made[0], domain=DOMAIN)
        return [unpacked, *_float_product(node, x, made[0], scales, made[1], bias, block)]
    if bits not in _CODES or not whole:
        return None
    if not zero_points:
        zero_points = f"zero_points.{bits}.{N}.{blocks}"
        middle = b"\x88" if bits == 4 else b"\x80"
        tensors[zero_points] = TensorProto(name=zero_points, raw_data=middle * (-(-N * blocks * bits // 8)))
    _retype(tensors[codes], _CODES[bits], [N, K])
    _retype(tensors[zero_points], _CODES[bits], [N, blocks])
    return _float_product(node, x, codes, scales, zero_points, bias, block)


def _float_product(
    node: onnx.NodeProto, x: str, codes: str, scales: str, zero_points: str, bias: str, block: int
) -> list[onnx.NodeProto]:
    weight, product = f"{node.name}/Dequantized", f"{node.name}/Product" if bias else node.output[0]
    made = [
        helper.make_node(
            "DequantizeLinear", [codes, scales, zero_points], [weight], name=weight, axis=1, block_size=block
        ),
        helper.make_node(
            "FusedMatMul", [x, weight], [product], name=f"{node.name}/FusedMatMul", domain=MICROSOFT, transB=1
        ),
    ]
    if bias:
        made.append(helper.make_node("Add", [product, bias], list(node.output), name=f"{node.name}/Add"))
    return made


def _retype(tensor: onnx.TensorProto, kind: Any, dims: list[int]) -> None:
    tensor.data_type = kind
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _number(node: onnx.NodeProto, name: str) -> int:
    return int(next(attribute.i for attribute in node.attribute if attribute.name == name))
