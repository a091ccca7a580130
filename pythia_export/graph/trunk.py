"""A decoder in few nodes: pythia.Decoder, whose function is all layers and the final normalisation as `decoder.py`
writes them, and pythia.DecoderMask, whose function is what `decoder.py` makes of attention_mask.

A node costs ONNX Runtime about a microsecond, and each of its operators hands work out to threads anew. A small model
spends most of a token on that. So a graph for a CPU calls all its layers by one name. Where our library is registered,
its kernel computes them. Elsewhere ONNX Runtime inlines the function, and runs the graph that it had run without it.

- Inputs: x [B, T, hidden] float32; then what pythia.RotaryAttention reads: cos, sin, position_ids, seqlens_k,
  total_length, attention_bias; then the caches, layer by layer: past_key, past_value, and of int8 past_key_scale,
  past_value_scale; then the weights, layer by layer: scale and shift of both normalisations, and of each linear its
  codes, scales, zero points and bias, as far as it has them; then num_logits_to_keep [] int64, T [1] int64, and scale
  and shift of the final normalisation.
- Outputs: the last tokens normalised, [B, kept, hidden], all where num_logits_to_keep is 0; and the caches, grown. The
  kernel computes nothing behind the last layer's attention for tokens that are not kept.
- Attributes: num_heads, rotary_dim, accuracy_level, epsilon, parallel_residual (1 or 0), activation; and for every
  linear of every layer `bits`, and 1 or 0 in `zero_points` and `biases`.

Older artifacts have pythia.DecoderLayers instead, which lacks the final normalisation and its four inputs.

pythia.DecoderMask: attention_mask [B, total] int64 and the number of new tokens [1] int64 become seqlens_k [B] int32,
total_length [] int32 and attention_bias [B, 1, T, total] float32, as pythia.RotaryAttention has them.

The bodies have the names of the whole graph, so `without_trunk` gives back the graph that was folded, node by node. Two
things they have besides. A Cast to float32 stands behind each product: onnx infers no type for ONNX Runtime's
operators, and a function cannot declare one. ONNX Runtime drops such a Cast when it opens the graph. And constants,
which a function cannot read from the graph around it, are nodes.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from ..model.neox import FINAL_NORM, LINEARS, NORMS, NeoXConfig, cache_parts, layer_prefix
from ..recipe import Export
from ..weights.layout import Layout, LinearPlan
from .cache_scales import CacheScales
from .decoder import KEEP, PACKED, build_decoder, has_kernel, zero_points_of
from .ops import DOMAIN, MICROSOFT, OPSET

TRUNK, MASK = "Decoder", "DecoderMask"
TRUNKS = (TRUNK, "DecoderLayers")  # the second is in older artifacts
_SHARED = ("rotary.cos", "rotary.sin", "position_ids", "/mask/last/Expand/out0", "/mask/total/Reshape/out0",
           "/mask/bias/Expand/out0")  # fmt: skip
_NEW = "/mask/new"  # the node that counts new tokens, for the mask and for who reads the last of them
_IN_TRUNK = ("/layers.", "/last/", "/final_layer_norm/")  # names of nodes
_TYPED, _CONSTANT = "/typed", "/constant"
_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu", "mish")  # that the kernel has
_ATTRIBUTES = ("num_heads", "rotary_dim", "accuracy_level", "epsilon", "parallel_residual", "activation", "bits",
               "zero_points", "biases")  # fmt: skip


def build_graph(
    config: NeoXConfig, layout: Layout, export: Export, scales: CacheScales | None = None
) -> onnx.ModelProto:
    """Return the graph that is published: that of `build_decoder`, its layers one node where a kernel may run them."""
    model = build_decoder(config, layout, export, scales=scales)
    if not is_served(config, layout, export):
        return model
    return _with_mask(_with_trunk(model, config, layout, export))


def is_served(config: NeoXConfig, layout: Layout, export: Export) -> bool:
    """Say whether the layers are one node; others the graph calls operator by operator.

    At accuracy level 0 the kernel computes them as well, for the proof of a graph of level 4. ONNX Runtime is
    as fast there.
    """
    return (
        export.target == "cpu"
        and export.rotary == "custom"
        and export.layout == "flat"
        and export.accuracy_level == 4
        and not layout.fused
        and config.activation in _ACTIVATIONS
        and all(plan.method != "none" and has_kernel(plan) for plan in _linears(config, layout))
    )


def without_trunk(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that calls operator by operator; the same graph where it does already."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    bodies = {f.name: f for f in copy.functions if f.name in (*TRUNKS, MASK)}
    for function in bodies.values():
        copy.graph.value_info.extend(function.value_info)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        folded = node.domain == DOMAIN and node.op_type in bodies
        nodes += _untyped(bodies[node.op_type], node, copy.graph) if folded else [node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    kept = [f for f in copy.functions if f.name not in bodies]
    del copy.functions[:]
    copy.functions.extend(kept)
    return copy


def _linears(config: NeoXConfig, layout: Layout) -> list[LinearPlan]:
    return [layout.linears[f"{layer_prefix(i)}.{name}"] for i in range(config.num_layers) for name in LINEARS]


def _with_trunk(model: onnx.ModelProto, config: NeoXConfig, layout: Layout, export: Export) -> onnx.ModelProto:
    body = [node for node in model.graph.node if node.name.startswith(_IN_TRUNK)]
    made = {output for node in body for output in node.output}
    parts = [f"{i}.{part}" for i in range(config.num_layers) for part in cache_parts(export.cache_dtype)]
    weights = _weights(config, layout)
    ending = [KEEP, f"{_NEW}/out0", f"{FINAL_NORM}.weight", f"{FINAL_NORM}.bias"]
    first = [body[0].input[0], *_SHARED, *(f"past_key_values.{part}" for part in parts)]
    inputs, formal = [*first, *weights.values(), *ending], [*first, *weights, *ending]
    outputs = [body[-1].output[0], *(f"present.{part}" for part in parts)]
    constants = _constants(model, body, inputs)
    read = {name for node in body for name in node.input if name} - made - {tensor.name for tensor in constants}
    assert read == set(inputs)
    linears = _linears(config, layout)
    node = helper.make_node(
        TRUNK, inputs, outputs, name="/layers", domain=DOMAIN, num_heads=config.num_heads,
        rotary_dim=config.rotary_dim, accuracy_level=export.accuracy_level, epsilon=config.layer_norm_eps,
        parallel_residual=int(config.parallel_residual), activation=config.activation,
        bits=[plan.stored_bits for plan in linears],
        zero_points=[int(bool(zero_points_of(plan))) for plan in linears], biases=[int(plan.bias) for plan in linears],
    )  # fmt: skip
    nodes = [*_as_nodes(constants, "/last"), *_typed(body)]
    function = helper.make_function(DOMAIN, TRUNK, formal, outputs, nodes, _opsets(), attributes=_ATTRIBUTES)
    folded = _replaced(model, body, node)
    inner = made - set(outputs)
    function.value_info.extend(value for value in model.graph.value_info if value.name in inner)
    kept = [value for value in folded.graph.value_info if value.name not in inner]
    del folded.graph.value_info[:]
    folded.graph.value_info.extend(kept)
    folded.functions.insert(0, function)
    return folded


def _with_mask(model: onnx.ModelProto) -> onnx.ModelProto:
    body = [node for node in model.graph.node if node.name.startswith("/mask/") and node.name != _NEW]
    inputs, outputs = ["attention_mask", f"{_NEW}/out0"], list(_SHARED[3:])
    node = helper.make_node(MASK, inputs, outputs, name="/mask", domain=DOMAIN)
    folded = _replaced(model, body, node)
    nodes = [*_as_nodes(_constants(model, body, inputs), "/mask"), *body]
    folded.functions.insert(0, helper.make_function(DOMAIN, MASK, inputs, outputs, nodes, _opsets()[:1]))
    return folded


def _constants(model: onnx.ModelProto, body: list[onnx.NodeProto], inputs: list[str]) -> list[onnx.TensorProto]:
    """Return the constants that `body` reads from the graph, and that a function over `inputs` is not given."""
    read = {name for node in body for name in node.input} - set(inputs)
    return [tensor for tensor in model.graph.initializer if tensor.name in read]


def _as_nodes(constants: list[onnx.TensorProto], path: str) -> list[onnx.NodeProto]:
    return [helper.make_node("Constant", [], [x.name], name=f"{path}/{x.name}{_CONSTANT}", value=x) for x in constants]


def _replaced(model: onnx.ModelProto, body: list[onnx.NodeProto], node: onnx.NodeProto) -> onnx.ModelProto:
    """Return a copy with `node` where the first of `body` was, without constants that nobody reads any more."""
    names = {each.name for each in body}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for each in model.graph.node:
        if each.name == body[0].name:
            copy.graph.node.append(node)
        elif each.name not in names:
            copy.graph.node.append(each)
    read = {name for each in copy.graph.node for name in each.input}
    kept = [tensor for tensor in copy.graph.initializer if tensor.name in read]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


def _typed(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return copies of the nodes, with a Cast behind each product."""
    made: list[onnx.NodeProto] = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        made.append(copy)
        if node.op_type in PACKED:
            if len(node.input) > 3 and node.input[3]:
                copy.input[3] = _own(node.input[1])
            copy.output[0] = f"{node.name}/untyped"
            name = f"{node.name}{_TYPED}"
            made.append(helper.make_node("Cast", copy.output, node.output, name=name, to=onnx.TensorProto.FLOAT))
    return made


def _own(codes: str) -> str:
    """The name of a linear's zero points in the function, whose inputs all differ; of its packed codes' name."""
    return codes.removesuffix(".qweight") + ".zero_points"


def _untyped(function: onnx.FunctionProto, call: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return copies of a function's nodes without those that were put in, over the call's inputs.

    `graph` gets the constants that it lacks.
    """
    given = dict(zip(function.input, call.input, strict=True))
    made: list[onnx.NodeProto] = []
    held = {tensor.name for tensor in graph.initializer}
    for node in function.node:
        if node.name.endswith(_TYPED):
            made[-1].output[0] = node.output[0]
            continue
        if node.name.endswith(_CONSTANT):
            graph.initializer.extend([node.attribute[0].t] if node.output[0] not in held else [])
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [given.get(name, name) for name in node.input]
        made.append(copy)
    return made


def _opsets() -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid(*pair) for pair in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))]


def _weights(config: NeoXConfig, layout: Layout) -> dict[str, str]:
    """Return all layers' weights, in the order in which the kernel reads them: name in the function, and in the graph.

    The two differ where linears share a constant.
    """
    found: dict[str, str] = {}
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        for norm in NORMS:
            found |= {name: name for name in (f"{prefix}.{norm}.weight", f"{prefix}.{norm}.bias")}
        for linear in LINEARS:
            plan = layout.linears[f"{prefix}.{linear}"]
            found |= {name: name for name in (f"{plan.name}.qweight", f"{plan.name}.scales")}
            if zero_points_of(plan):
                found[_own(f"{plan.name}.qweight")] = zero_points_of(plan)
            if plan.bias:
                found[f"{plan.name}.bias"] = f"{plan.name}.bias"
    return found
