"""GPT-NeoX as ONNX: a decoder with a KV cache, written node by node; its weights stay in `model.onnx_data`.

Names are those that ONNX Runtime's consumers expect: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.N.key`, `present.N.key`, `logits`. Node names tell the place: `/layers.3/mlp/dense_h_to_4h/MatMul`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, NORMS, QKV, Activation, NeoXConfig, cache_parts, layer_prefix
from ..recipe import Export
from ..weights.layout import EMBEDDING_BLOCK, FUSED_IN, FUSED_OUT, Layout, LinearPlan, Slot
from ..weights.names import DATA_FILE
from .cache_scales import CacheScales, name_of
from .ops import DOMAIN, LINEAR, LINEAR_3, LOWEST, MICROSOFT, OPSET, linear_3_bits, linear_nbits, rotary_attention
from .taps import Taps

KEEP = "num_logits_to_keep"  # the name that transformers.js and Hugging Face gave it
ALL_LOGITS = 2**31 - 1
LOGITS_LENGTH = "logits_length"
STREAM = "stream"  # what the logit lens reads
PACKED = ("MatMulNBits", LINEAR, LINEAR_3)  # have packed weights: ONNX Runtime's, and ours (once by the same name)
ROUNDING_BLOCKS = (32, 64, 128)  # those in which ONNX Runtime 1.32 rounds activations before products with 2 bits
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
}


class _Tape:
    """Appends nodes and initializers; a name used twice is an error."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.values: list[onnx.ValueInfoProto] = []
        self._names: set[str] = set()
        self._made: dict[str, str] = {}

    def node(self, op: str, name: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """One node called `name`; returns the name of its output."""
        if name in self._names:
            raise ValueError(f"two nodes are called {name}")
        self._names.add(name)
        output = f"{name}/out0"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, domain=domain, **attributes))
        return output

    def once(self, key: str, make: Callable[[], str]) -> str:
        """What `make` adds, added when it is first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def typed(self, value: str, kind: int, width: int, length: str = "sequence_length") -> str:
        """Declare `value` as [batch, `length`, width]: onnx cannot infer the outputs of operators it does not know."""
        shape = ("batch_size", length, width)
        self.values.append(helper.make_tensor_value_info(value, kind, shape))
        return value

    def hand_out(self, name: str) -> None:
        """Let the last node's output be the graph's output `name`."""
        self.values = [value for value in self.values if value.name != self.nodes[-1].output[0]]
        self.nodes[-1].output[0] = name

    def weight(self, name: str) -> str:
        """An initializer that lies in the data file where the layout says."""
        if name not in self.initializers:
            self.initializers[name] = _external(self.layout.wholes.get(name) or self.layout.slots[name])
        return name

    def constant(self, name: str, kind: int, dims: Sequence[int], values: Sequence[float] | bytes) -> str:
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(name, kind, dims, values, raw=isinstance(values, bytes))
        return name


def _external(slot: Slot) -> onnx.TensorProto:
    tensor = TensorProto(name=slot.name, data_type=_TYPES[slot.dtype], dims=slot.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", slot.offset), ("length", slot.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def build_decoder(
    config: NeoXConfig, layout: Layout, export: Export, hooks: Sequence[str] = (), scales: CacheScales | None = None
) -> onnx.ModelProto:
    """The whole graph; not a byte of a weight is read. With `hooks` it is the tapped graph (taps.py). `scales` are for
    `export.static_scales`, and for no other cache.

    Outputs: logits [batch, sequence, vocab] float32 and the extended cache. `export.rotary` chooses whether
    attention stays a call of pythia.RotaryAttention ("custom") or its body stands in the graph.

    num_logits_to_keep [] int64 says how many of the last tokens get logits; 0 is all, and so is more than there are. A
    prompt needs one, and the head is a large part of a small model's work. It is a constant of the graph: as an input
    with a default every runtime warns of it at load. Who wants to set it declares it as an input (runtime/graph.py,
    `settable`).
    """
    if (scales is not None) != export.static_scales:
        raise ValueError("scales for the cache were expected of an int8 cache with rotary = 'gqa', and of no other")
    kind = _TYPES[export.dtype]
    tape = _Tape(layout)
    for name, array in (scales or {}).items():
        tape.initializers[name] = numpy_helper.from_array(array[None, :, None, :], name)
    taps = Taps(config, hooks, kind)
    new = tape.node("Shape", "/mask/new", ["position_ids"], start=1, end=2)  # used here, so that tools keep the input
    shared = _shared_inputs(tape, kind, new)
    x = _embedding(tape, layout, export, config.hidden_size, kind)
    x = taps.at(tape, "embed.hook_out", x, config.hidden_size)
    for layer in range(config.num_layers):
        x = taps.at(tape, f"blocks.{layer}.hook_in", x, config.hidden_size)
        x = _block(tape, config, layout, export, layer, x, shared, taps)
        x = taps.at(tape, f"blocks.{layer}.hook_out", x, config.hidden_size)
    start = _from_last(tape, new)
    normed = _norm(
        tape, config, FINAL_NORM, "/final_layer_norm", _last(tape, "/last", x, start, kind, config.hidden_size)
    )
    x = taps.final(tape, x, normed, lambda y: _last(tape, "/last/changed", y, start, kind, config.hidden_size))
    _logits(tape, layout, export, x)

    cache = ("batch_size", config.num_heads, "past_sequence_length", config.head_dim)
    grown = ("batch_size", config.num_heads, "present_sequence_length", config.head_dim)
    tokens, value = ("batch_size", "sequence_length"), helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, tokens),
        value("attention_mask", TensorProto.INT64, ("batch_size", "total_sequence_length")),
        value("position_ids", TensorProto.INT64, tokens),
    ]
    if hooks:
        inputs += taps.inputs()
    outputs = [value("logits", TensorProto.FLOAT, ("batch_size", LOGITS_LENGTH, config.vocab_size))]
    for layer in range(config.num_layers):
        for part in cache_parts(export.cache_dtype, export.static_scales):
            scale = part.endswith("scale")
            of_cache = TensorProto.FLOAT if scale else _TYPES[export.cache_dtype]
            inputs.append(value(f"past_key_values.{layer}.{part}", of_cache, cache[:3] if scale else cache))
            outputs.append(value(f"present.{layer}.{part}", of_cache, grown[:3] if scale else grown))
    converted = export.cache_dtype if export.cache_dtype != export.dtype else None
    graph = helper.make_graph(tape.nodes, "gpt_neox", inputs, outputs + taps.outputs, list(tape.initializers.values()))
    graph.value_info.extend(tape.values)
    attention = rotary_attention(
        config,
        export.rotary == "onnx",
        export.dtype,
        converted,
        called=export.rotary == "custom",
        static_scales=export.static_scales,
    )
    model = _model(graph, [attention, *_called(tape.nodes)])
    return model if export.rotary == "custom" else _inlined(model)


def build_lens(config: NeoXConfig, layout: Layout, export: Export) -> onnx.ModelProto:
    """Return the end of the decoder as a graph of its own: the logit lens, which reads any residual stream.

    It reads `stream` [batch, sequence, hidden], of the activations' type, and gives logits [batch, sequence, vocab]
    float32.
    """
    tape = _Tape(layout)
    kind, tokens = _TYPES[export.dtype], ("batch_size", "sequence_length")
    _logits(tape, layout, export, _norm(tape, config, FINAL_NORM, "/final_layer_norm", STREAM))
    graph = helper.make_graph(
        tape.nodes,
        "lens",
        [helper.make_tensor_value_info(STREAM, kind, (*tokens, config.hidden_size))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (*tokens, config.vocab_size))],
        list(tape.initializers.values()),
    )
    return _model(graph, _called(tape.nodes))


def located(model: onnx.ModelProto, location: str) -> bytes:
    """Return a graph over flat weights as one that reads them from `location`; `model` is changed."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return bytes(model.SerializeToString())


def _logits(tape: _Tape, layout: Layout, export: Export, normed: str) -> None:
    """The graph's output `logits`, float32."""
    logits = _linear(tape, layout.linears[HEAD], export, "/embed_out", normed)
    if export.dtype != "float32":  # else it would copy every logit
        tape.node("Cast", "/logits/Cast", [logits], to=TensorProto.FLOAT)
    tape.hand_out("logits")


def _model(graph: onnx.GraphProto, functions: Sequence[onnx.FunctionProto]) -> onnx.ModelProto:
    return helper.make_model(
        graph,
        functions=functions,
        opset_imports=[helper.make_opsetid(*pair) for pair in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))],
        producer_name="pythia-export",
        ir_version=10,
    )


def _called(nodes: Sequence[onnx.NodeProto]) -> list[onnx.FunctionProto]:
    """Return those of our products that a node calls."""
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    bodies = {LINEAR: linear_nbits, LINEAR_3: linear_3_bits}
    return [body() for name, body in bodies.items() if name in called]


def for_browsers(export: Export) -> bool:
    """Whether the graph has to run by WebAssembly and by WebGPU."""
    return export.target == "web" or export.layout == "transformers.js"


def kv_cache(export: Export) -> Literal["shared", "growing"]:
    """How a runtime binds the cache: "shared" (one buffer is past and present) or "growing"."""
    return "growing" if export.rotary == "onnx" else "shared"


def _shared_inputs(tape: _Tape, kind: int, new: str) -> list[str]:
    """What every layer's attention reads: cos, sin, positions, lengths and the mask as an additive bias."""
    scalar = tape.constant("scalar", TensorProto.INT64, [0], [])
    batch = tape.node("Shape", "/mask/batch", ["attention_mask"], start=0, end=1)
    total64 = tape.node("Shape", "/mask/total", ["attention_mask"], start=1, end=2)
    total = tape.node("Cast", "/mask/total/Cast", [total64], to=TensorProto.INT32)
    total_scalar = tape.node("Reshape", "/mask/total/Reshape", [total, scalar])
    # total - 1 for every row: with sum(mask) - 1 a left-padded row would read a cache that is too short.
    one = tape.constant("one", TensorProto.INT32, [1], [1])
    last = tape.node("Sub", "/mask/last/Sub", [total, one])
    seqlens = tape.node("Expand", "/mask/last/Expand", [last, batch])
    zero_id = tape.constant("zero", TensorProto.INT64, [], [0])
    padding = tape.node("Equal", "/mask/padding", ["attention_mask", zero_id])
    hide = tape.constant("hide", kind, [], [LOWEST])
    show = tape.constant("show", kind, [], [0.0])
    bias = tape.node("Where", "/mask/bias/Where", [padding, hide, show])
    axes = tape.constant("axes12", TensorProto.INT64, [2], [1, 2])
    bias4 = tape.node("Unsqueeze", "/mask/bias/Unsqueeze", [bias, axes])
    ones = tape.constant("one64", TensorProto.INT64, [1], [1])
    shape = tape.node("Concat", "/mask/bias/shape", [batch, ones, new, total64], axis=0)
    expanded = tape.node("Expand", "/mask/bias/Expand", [bias4, shape])
    return [tape.weight("rotary.cos"), tape.weight("rotary.sin"), "position_ids", seqlens, total_scalar, expanded]


def _from_last(tape: _Tape, new: str) -> str:
    """Return how far from the end the tokens begin that get logits, [1] int64; `new` [1] int64 counts all of them.

    So that num_logits_to_keep can be set in what ONNX Runtime, onnxslim or onnxsim make of the graph: its minimum with
    a number that only a step knows is not computed in advance, and its value is no other constant's, with which they
    would make it one.
    """
    keep = tape.constant(KEEP, TensorProto.INT64, [], [ALL_LOGITS])
    return tape.node("Neg", "/last/Neg", [tape.node("Min", "/last/Min", [keep, new])])


def _last(tape: _Tape, path: str, x: str, start: str, kind: int, hidden: int) -> str:
    """Return the tokens that get logits, [batch, logits, hidden]."""
    one = tape.constant("one64", TensorProto.INT64, [1], [1])
    end = tape.constant("end", TensorProto.INT64, [1], [2**63 - 1])
    return tape.typed(tape.node("Slice", f"{path}/Slice", [x, start, end, one]), kind, hidden, LOGITS_LENGTH)


def _embedding(tape: _Tape, layout: Layout, export: Export, hidden: int, kind: int) -> str:
    scheme = layout.embedding
    if scheme is not None:
        data, scales = tape.weight(f"{EMBEDDING}.qweight"), tape.weight(f"{EMBEDDING}.scales")
        if for_browsers(export):
            return tape.typed(_dequantised_rows(tape, data, scales, scheme.bits, hidden, kind), kind, hidden)
        rows = tape.node(
            "GatherBlockQuantized", "/embed_in/GatherBlockQuantized", [data, "input_ids", scales],
            domain=MICROSOFT, bits=scheme.bits, block_size=scheme.group_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        return tape.typed(rows, kind, hidden)
    table = tape.weight(f"{EMBEDDING}.weight")
    same = _TYPES[layout.slots[table].dtype] == kind
    if not same and for_browsers(export):
        # Folded when a session opens. WebGPU takes on a Gather of float16 and fails where a GPU has no shader-f16.
        table = tape.node("Cast", "/embed_in/Cast", [table], to=kind)
    rows = tape.node("Gather", "/embed_in/Gather", [table, "input_ids"])
    return rows if same or for_browsers(export) else tape.node("Cast", "/embed_in/Cast", [rows], to=kind)


def _dequantised_rows(tape: _Tape, data: str, scales: str, bits: int, hidden: int, kind: int) -> str:
    """What GatherBlockQuantized computes, by standard operators: the WebAssembly that transformers.js 4.3 brings into
    a browser does not have that one. Of a few tokens it costs nothing."""
    at = "/embed_in"
    last = tape.constant("embed_in.last", TensorProto.INT64, [1], [-1])

    def number(name: str, value: float) -> str:
        return tape.constant(f"embed_in.{name}", kind, [1], [value])

    codes = tape.node("Cast", f"{at}/Cast", [tape.node("Gather", f"{at}/Gather", [data, "input_ids"])], to=kind)
    if bits == 4:  # two in a byte, the low one first
        sixteen = number("sixteen", 16)
        high = tape.node("Floor", f"{at}/high/Floor", [tape.node("Div", f"{at}/high/Div", [codes, sixteen])])
        low = tape.node("Sub", f"{at}/low/Sub", [codes, tape.node("Mul", f"{at}/low/Mul", [high, sixteen])])
        pair = [tape.node("Unsqueeze", f"{at}/{n}/Unsqueeze", [x, last]) for n, x in (("low", low), ("high", high))]
        codes = tape.node("Concat", f"{at}/Concat", pair, axis=-1)
    blocks = tape.constant(
        "embed_in.blocks", TensorProto.INT64, [4], [0, 0, hidden // EMBEDDING_BLOCK, EMBEDDING_BLOCK]
    )
    rows = tape.constant("embed_in.rows", TensorProto.INT64, [3], [0, 0, hidden])
    centred = tape.node("Sub", f"{at}/Sub", [codes, number("zero_point", 2 ** (bits - 1))])
    scale = tape.node(
        "Unsqueeze", f"{at}/scale/Unsqueeze", [tape.node("Gather", f"{at}/scale/Gather", [scales, "input_ids"]), last]
    )
    scaled = tape.node("Mul", f"{at}/Mul", [tape.node("Reshape", f"{at}/blocks/Reshape", [centred, blocks]), scale])
    return tape.node("Reshape", f"{at}/rows/Reshape", [scaled, rows])


def _block(
    tape: _Tape, config: NeoXConfig, layout: Layout, export: Export, layer: int, x: str, shared: list[str], taps: Taps
) -> str:
    prefix, path, hook = layer_prefix(layer), f"/layers.{layer}", f"blocks.{layer}"
    hidden, wide = config.hidden_size, config.intermediate_size

    def linear(name: str, value: str) -> str:
        return _linear(tape, layout.linears[f"{prefix}.{name}"], export, f"{path}/{name.replace('.', '/')}", value)

    if layout.fused:
        return _two_products(tape, config, layout, export, layer, x, shared, taps)
    normed = _norm(tape, config, f"{prefix}.input_layernorm", f"{path}/input_layernorm", x)
    mixed = _attention(tape, config, export, layer, linear(QKV, normed), shared, taps)
    attention = taps.at(tape, f"{hook}.attn.hook_out", linear("attention.dense", mixed), hidden)
    if not config.parallel_residual:
        x = taps.at(
            tape, f"{hook}.ln2.hook_in", tape.node("Add", f"{path}/attention/residual/Add", [attention, x]), hidden
        )
    normed = _norm(tape, config, f"{prefix}.post_attention_layernorm", f"{path}/post_attention_layernorm", x)
    up = taps.at(tape, f"{hook}.mlp.hook_pre", linear("mlp.dense_h_to_4h", normed), wide)
    up = _activation(tape, config.activation, _TYPES[export.dtype], f"{path}/mlp", up)
    up = taps.at(tape, f"{hook}.mlp.hook_post", up, wide)
    mlp = taps.at(tape, f"{hook}.mlp.hook_out", linear("mlp.dense_4h_to_h", up), hidden)
    if not config.parallel_residual:
        return tape.node("Add", f"{path}/residual/Add", [mlp, x])
    both = tape.node("Add", f"{path}/branches/Add", [attention, mlp])
    return tape.node("Add", f"{path}/residual/Add", [both, x])


def _two_products(
    tape: _Tape, config: NeoXConfig, layout: Layout, export: Export, layer: int, x: str, shared: list[str], taps: Taps
) -> str:
    """Both branches read one vector, and one product sums them."""
    prefix, path, d = layer_prefix(layer), f"/layers.{layer}", config.hidden_size
    scale = tape.weight(f"{prefix}.{NORMS[0]}.weight")
    z = tape.node(
        "LayerNormalization", f"{path}/LayerNormalization", [x, scale], axis=-1, epsilon=config.layer_norm_eps
    )
    both = _linear(tape, layout.fused[f"{prefix}.{FUSED_IN}"], export, f"{path}/{FUSED_IN}", z)
    widths = tape.constant("fused_in_widths", TensorProto.INT64, [2], [3 * d, config.intermediate_size])
    qkv, up = f"{path}/{FUSED_IN}/qkv", f"{path}/{FUSED_IN}/up"
    tape.nodes.append(helper.make_node("Split", [both, widths], [qkv, up], name=f"{path}/{FUSED_IN}/Split", axis=-1))
    mixed = _attention(tape, config, export, layer, qkv, shared, taps)
    up = taps.at(tape, f"blocks.{layer}.mlp.hook_pre", up, config.intermediate_size)
    up = _activation(tape, config.activation, _TYPES[export.dtype], f"{path}/mlp", up)
    up = taps.at(tape, f"blocks.{layer}.mlp.hook_post", up, config.intermediate_size)
    joined = tape.node("Concat", f"{path}/{FUSED_OUT}/Concat", [mixed, up], axis=-1)
    out = _linear(tape, layout.fused[f"{prefix}.{FUSED_OUT}"], export, f"{path}/{FUSED_OUT}", joined)
    return tape.node("Add", f"{path}/residual/Add", [out, x])


def _attention(
    tape: _Tape, config: NeoXConfig, export: Export, layer: int, qkv: str, shared: list[str], taps: Taps
) -> str:
    """What the heads give, [batch, sequence, hidden]; the layer's cache is extended."""
    qkv = taps.qkv(tape, layer, qkv)
    name = f"/layers.{layer}/attention/RotaryAttention"
    parts = cache_parts(export.cache_dtype, export.static_scales)
    static = [name_of(layer, part) for part in parts] if export.static_scales else []
    present = [f"present.{layer}.{part}" for part in parts]
    past = [f"past_key_values.{layer}.{part}" for part in parts]
    tape.nodes.append(
        helper.make_node(
            "RotaryAttention", [qkv, *past[:2], *shared, *past[2:], *static], [f"{name}/out0", *present], name=name,
            domain=DOMAIN, num_heads=config.num_heads, rotary_dim=config.rotary_dim,
        )
    )  # fmt: skip
    mixed = tape.typed(f"{name}/out0", _TYPES[export.dtype], config.hidden_size)
    mixed = taps.pattern(tape, layer, qkv, present, mixed, static)
    return taps.heads(tape, f"blocks.{layer}.attn.hook_z", mixed)


def _activation(tape: _Tape, activation: Activation, kind: int, path: str, x: str) -> str:
    """What the MLP makes of h_to_4h's output, elementwise. Its last node alone lies at `path` itself."""

    def number(value: float) -> str:
        return tape.constant(f"mlp.{value:g}", kind, [], [value])

    match activation:
        case "gelu":
            return tape.node("Gelu", f"{path}/Gelu", [x], approximate="none")
        case "gelu_tanh":
            return tape.node("Gelu", f"{path}/Gelu", [x], approximate="tanh")
        case "gelu_10":
            gelu = tape.node("Gelu", f"{path}/gelu_10/Gelu", [x], approximate="none")
            return tape.node("Clip", f"{path}/Clip", [gelu, number(-10.0), number(10.0)])
        case "relu":
            return tape.node("Relu", f"{path}/Relu", [x])
        case "relu2":
            relu = tape.node("Relu", f"{path}/relu2/Relu", [x])
            return tape.node("Mul", f"{path}/Mul", [relu, relu])
        case "silu":
            return tape.node("Mul", f"{path}/Mul", [x, tape.node("Sigmoid", f"{path}/silu/Sigmoid", [x])])
        case "quick_gelu":
            scaled = tape.node("Mul", f"{path}/quick_gelu/Mul", [x, number(1.702)])
            return tape.node("Mul", f"{path}/Mul", [x, tape.node("Sigmoid", f"{path}/quick_gelu/Sigmoid", [scaled])])
        case "mish":
            plus = tape.node("Softplus", f"{path}/mish/Softplus", [x])
            return tape.node("Mul", f"{path}/Mul", [x, tape.node("Tanh", f"{path}/mish/Tanh", [plus])])


def _norm(tape: _Tape, config: NeoXConfig, name: str, path: str, x: str) -> str:
    inputs = [x, tape.weight(f"{name}.weight"), tape.weight(f"{name}.bias")]
    return tape.node("LayerNormalization", f"{path}/LayerNormalization", inputs, axis=-1, epsilon=config.layer_norm_eps)


def _linear(tape: _Tape, plan: LinearPlan, export: Export, path: str, x: str) -> str:
    bias = tape.weight(f"{plan.name}.bias") if plan.bias else ""
    if plan.method == "none":
        weight = tape.weight(f"{plan.name}.weight")
        if plan.name == HEAD and tape.layout.slots[weight].dtype != export.dtype:
            # Folded when a session opens: stored small, computed in the activations' type.
            weight = tape.node("Cast", f"{path}/Cast", [weight], to=_TYPES[export.dtype])
        product = tape.node("MatMul", f"{path}/MatMul", [x, weight])
        return tape.node("Add", f"{path}/Add", [product, bias]) if bias else product
    zero_points = _zero_points(tape, plan)
    inputs = [x, tape.weight(f"{plan.name}.qweight"), tape.weight(f"{plan.name}.scales"), zero_points, "", bias]
    while not inputs[-1]:
        inputs.pop()
    level = {"accuracy_level": export.accuracy_level}
    op, domain = PACKED[0], MICROSOFT
    if plan.is_narrow:
        op, domain = LINEAR_3, DOMAIN
    elif export.rotary == "custom" and export.target == "cpu" and export.accuracy_level == 4 and has_kernel(plan):
        op, domain, level = LINEAR, DOMAIN, {}
    product = tape.node(
        op, f"{path}/MatMul", inputs, domain=domain, K=plan.shape[1], N=plan.shape[0], bits=plan.stored_bits,
        block_size=plan.block_size, **level,
    )  # fmt: skip
    length = LOGITS_LENGTH if plan.name == HEAD else "sequence_length"
    return tape.typed(product, _TYPES[export.dtype], plan.shape[0], length)


def has_kernel(plan: LinearPlan) -> bool:
    """Whether our kernel, at accuracy level 4, computes what ONNX Runtime's would."""
    return plan.stored_bits != 2 or plan.block_size in ROUNDING_BLOCKS


def zero_points_of(plan: LinearPlan) -> str:
    """Return the name of a linear's zero points, empty where the operator's own are meant.

    A symmetric grid of 3 bits has its zero at 4, which MatMulNBits is told: linears of one shape share the constant.
    """
    if not plan.scheme.symmetric:
        return f"{plan.name}.zero_points"
    return f"zero_points.3.{plan.zero_shape[0]}.{plan.zero_shape[1]}" if plan.is_narrow else ""


def _zero_points(tape: _Tape, plan: LinearPlan) -> str:
    name = zero_points_of(plan)
    if name and plan.scheme.symmetric:
        return tape.constant(name, TensorProto.UINT8, plan.zero_shape, bytes([0x44]) * math.prod(plan.zero_shape))
    return tape.weight(name) if name else ""


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The function's body in place of its calls; its nodes are named after the layer they serve."""
    flat = inliner.inline_local_functions(model)
    layer, count = 0, 0
    for node in flat.graph.node:
        if node.name.startswith("/layers."):
            layer = int(node.name.split("/")[1].removeprefix("layers."))
        if not node.name or "RotaryAttention" in node.name:
            node.name = f"/layers.{layer}/attention/{node.op_type}_{count}"
            count += 1
    kept = [o for o in flat.opset_import if o.domain != DOMAIN]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    return flat
