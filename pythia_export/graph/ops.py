"""Our operators, and the function bodies that let any ONNX Runtime run them. First pythia.RotaryAttention:

A is the type of the activations (float32 or float16), C that of the cache (float32, float16 or int8).

| input | shape, type | |
|---|---|---|
| qkv | [B, T, 3 * hidden] A | packed q, k, v; each [heads, head_dim], not yet rotated |
| past_key, past_value | [B, heads, P, head_dim] C | rotated keys; with a shared buffer P is its whole length |
| cos, sin | [max_positions, rotary_dim / 2] A | |
| position_ids | [B, T] int64 | |
| seqlens_k | [B] int32 | total_length - 1 for every row, left-padded or not |
| total_length | [] int32 | tokens cached after this call; T of them are new |
| attention_bias | [B, 1, T, total_length] A | added to the scores before softmax; hides padding |
| past_key_scale, past_value_scale | [B, heads, P] float32 | with int8 alone: x is about code * scale |

Outputs: attention [B, T, hidden] A; present_key, present_value [B, heads, max(P, total_length), head_dim] C; with int8
present_key_scale, present_value_scale [B, heads, max(P, total_length)].
Attributes: num_heads, rotary_dim. Causal; scores are scaled by 1 / sqrt(head_dim); the first rotary_dim dimensions of
each head of q and k turn half-split: ``(a, b) -> (a cos - b sin, b cos + a sin)``.

int8 is symmetric, one scale a head and token: ``scale = max|x| / 127``, ``code = round(x / scale)``, half to even, and
0 for a vector of zeros. Keys are rounded after they were rotated. Attention reads the cache as it is stored, the new
tokens included, so that prefill and decode agree.

Rotation is relative, so a body may turn by the place in the cache where `position_ids` counts from the first token
that is not padding: outputs agree, cached keys differ by that row's constant turn.

Every body reads every input. Tools that tidy a function (onnxslim) remove an input that its body does not read, and
leave the calls as they were. For their sake constants are tensors, too: of a `value_float` they make a double.

What a body costs: where A and C are one type GroupQueryAttention writes into a shared buffer. Where they differ no ONNX
Runtime operator does, so each call copies the buffer, and what is valid of it again as A. The native kernel does not.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import parser

from ..model.neox import NeoXConfig

DOMAIN = "pythia"
MICROSOFT = "com.microsoft"
LINEAR = "LinearNBits"
LINEAR_3 = "Linear3Bits"
UNPACK_3 = "Unpack3Bits"
OPSET = 21
LOWEST = -3e4  # hides a position from softmax; twice it is still a finite float16, so a row of padding alone is not NaN
# Codes of 3 bits, B [N, chunks, 3, plane], as codes of 4, two in a byte: `four` [N, chunks, 4, plane].
_FOUR = """three_bits = Constant <value: tensor = uint8 {119}> ()
            three = BitwiseAnd (B, three_bits)
            places = Constant <value: tensor = uint8[3, 1] {3, 2, 1}> ()
            shifted = BitShift <direction: string = "RIGHT"> (B, places)
            spare_bits = Constant <value: tensor = uint8[3, 1] {17, 34, 68}> ()
            spare = BitwiseAnd (shifted, spare_bits)
            bit_0, bit_1, bit_2 = Split <axis: int = 2, num_outputs: int = 3> (spare)
            two_bits = BitwiseOr (bit_0, bit_1)
            fourth = BitwiseOr (two_bits, bit_2)
            four = Concat <axis: int = 2> (three, fourth)"""
_INPUTS = (
    "qkv, past_key, past_value, cos, sin, position_ids, seqlens_k, total_length, attention_bias",
    "past_key_scale, past_value_scale",
)
_OUTPUTS = "attention, present_key, present_value", "present_key_scale, present_value_scale"
_ELEMENT = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}


def linear_nbits() -> onnx.FunctionProto:
    """Return the function body of pythia.LinearNBits: ONNX Runtime's MatMulNBits at accuracy level 4.

    Inputs A [..., K] float32; B [N, ceil(K / block_size), block_size * bits / 8] uint8; scales [N * blocks] float32;
    zero_points, optional; g_idx, always empty; bias [N] float32, optional. Attributes K, N, bits (2, 4, 8), block_size.
    Y [..., N] float32. Activations are rounded to int8, each block of a row by its own scale max|x| / 127. At
    another level it is another operator: nodes that compute in float are com.microsoft's. Its name is not that of the
    operator inside it, because tools that rename functions (onnx.compose.add_prefix) rename every call of that name.
    """
    return parser.parse_function(f"""<opset_import: ["": {OPSET}, "{MICROSOFT}": 1], domain: "{DOMAIN}">
        {LINEAR} <K, N, bits, block_size> (A, B, scales, zero_points, g_idx, bias) => (Y) {{
            Y = {MICROSOFT}.MatMulNBits <K: int = @K, N: int = @N, bits: int = @bits, block_size: int = @block_size,
                accuracy_level: int = 4> (A, B, scales, zero_points, g_idx, bias)
        }}""")


def linear_3_bits() -> onnx.FunctionProto:
    """Return the function body of pythia.Linear3Bits: ONNX Runtime's MatMulNBits over codes of 3 bits, unpacked to 4.

    Inputs A [..., K]; B [N, chunks, 3, plane] uint8, packed as `weights/narrow.py` says; scales [N, blocks];
    zero_points [N, ceil(blocks / 2)] uint8, two in a byte; g_idx, always empty; bias [N], optional. Attributes K, N,
    bits (3), block_size, accuracy_level (0, or 4: activations are rounded to int8). Y [..., N].

    Weights are constants, so ONNX Runtime unpacks them once, when a session opens. Each step of that leaves a copy
    until all are unpacked, so the steps are few, and those that can be are short.
    """
    return parser.parse_function(f"""<opset_import: ["": {OPSET}, "{MICROSOFT}": 1], domain: "{DOMAIN}">
        {LINEAR_3} <K, N, bits, block_size, accuracy_level> (A, B, scales, zero_points, g_idx, bias) => (Y) {{
            {_FOUR}
            rows_and_blocks = Shape (scales)
            rest = Constant <value_ints: ints = [-1]> ()
            in_blocks = Concat <axis: int = 0> (rows_and_blocks, rest)
            codes = Reshape (four, in_blocks)
            Y = {MICROSOFT}.MatMulNBits <K: int = @K, N: int = @N, bits: int = 4, block_size: int = @block_size,
                accuracy_level: int = @accuracy_level> (A, codes, scales, zero_points, g_idx, bias)
        }}""")


def unpack_3_bits() -> onnx.FunctionProto:
    """Return the function body of pythia.Unpack3Bits, which graphs for a browser call: a byte for each code.

    B and zero_points are as pythia.Linear3Bits has them, and scales [N, blocks] say how many blocks there are. Codes
    [N, K] and zeros [N, blocks], uint8. All are constants, so ONNX Runtime computes them once.
    """
    return parser.parse_function(f"""<opset_import: ["": {OPSET}], domain: "{DOMAIN}">
        {UNPACK_3} (B, scales, zero_points) => (codes, zeros) {{
            {_FOUR}
            low_bits = Constant <value: tensor = uint8 {{15}}> ()
            half = Constant <value: tensor = uint8 {{4}}> ()
            last = Constant <value_ints: ints = [-1]> ()
            in_rows = Constant <value_ints: ints = [0, -1]> ()
            low = BitwiseAnd (four, low_bits)
            high = BitShift <direction: string = "RIGHT"> (four, half)
            low_apart = Unsqueeze (low, last)
            high_apart = Unsqueeze (high, last)
            in_turn = Concat <axis: int = -1> (low_apart, high_apart)
            codes = Reshape (in_turn, in_rows)
            zero_low = BitwiseAnd (zero_points, low_bits)
            zero_high = BitShift <direction: string = "RIGHT"> (zero_points, half)
            zero_low_apart = Unsqueeze (zero_low, last)
            zero_high_apart = Unsqueeze (zero_high, last)
            zeros_in_turn = Concat <axis: int = -1> (zero_low_apart, zero_high_apart)
            zeros_and_padding = Reshape (zeros_in_turn, in_rows)
            first = Constant <value_ints: ints = [0]> ()
            second_axis = Constant <value_ints: ints = [1]> ()
            blocks = Shape <start: int = 1, end: int = 2> (scales)
            zeros = Slice (zeros_and_padding, first, blocks, second_axis)
        }}""")


def rotary_attention(
    config: NeoXConfig,
    standard: bool,
    dtype: str = "float32",
    cache: str | None = None,
    called: bool = True,
    static_scales: bool = False,
) -> onnx.FunctionProto:
    """Return the function body for one geometry, of standard ONNX operators or (faster) over GroupQueryAttention.

    `dtype` is A; `cache` is C where it differs from A, None where both are one type. `called` False is for a body that
    will stand in the graph itself, where an input that it does not need costs nothing. `static_scales` is for a cache
    of int8 as GroupQueryAttention has it: two inputs more, key_scale and value_scale [1, heads, 1, head_dim] float32,
    by which ``code = clip(round(x / scale), -128, 127)``, half to even. Attention reads ``code * scale``.

    Constants are of A's type as they are: ONNX Runtime takes a CastLike apart after it has folded constants, so in a
    graph of its own each of them would be computed at every step.
    """
    scaled, quantised = "", ""
    if static_scales:
        scaled = ', "", key_scale, value_scale'
        quantised = ', k_quant_type: string = "PER_CHANNEL", v_quant_type: string = "PER_CHANNEL"'
        quantised += ", kv_cache_bit_width: int = 8"
    if cache is not None and not static_scales:
        body = (
            _rotate(config)
            + _by_head(config)
            + _PAST_OF_LENGTHS
            + _converted(cache, dtype)
            + _attend(config, dtype, cache)
        )
    elif standard:
        body = _rotate(config) + _by_head(config) + _PAST + _GROWING + _attend(config, dtype, cache)
    elif config.rotary_dim % 16 == 0:
        # GroupQueryAttention rotates by itself only where its tables' width is a multiple of 8.
        attended = "attended" if called else "attention"
        body = f"""
        {attended}, present_key, present_value = com.microsoft.GroupQueryAttention <
            num_heads: int = @num_heads, kv_num_heads: int = @num_heads, do_rotary: int = 1{quantised}>
            (qkv, "", "", past_key, past_value, seqlens_k, total_length, cos, sin, "", attention_bias{scaled})
        """ + (_shaped(config) if called else "")
    else:
        body = (
            _rotate(config)
            + f"""
        q_k = Constant <value_ints: ints = [0, 0, {2 * config.hidden_size}]> ()
        qk_flat = Reshape (qk_rotated, q_k)
        q, k = Split <axis: int = -1, num_outputs: int = 2> (qk_flat)
        attention, present_key, present_value = com.microsoft.GroupQueryAttention <
            num_heads: int = @num_heads, kv_num_heads: int = @num_heads, do_rotary: int = 0{quantised}>
            (q, k, v, past_key, past_value, seqlens_k, total_length, "", "", "", attention_bias{scaled})
        """
        )
    upto = 2 if cache == "int8" and not static_scales else 1
    inputs = [*_INPUTS[:upto], *(["key_scale, value_scale"] if static_scales else [])]
    signature = f"RotaryAttention <num_heads, rotary_dim> ({', '.join(inputs)}) => ({', '.join(_OUTPUTS[:upto])})"
    text = f'<opset_import: ["": {OPSET}, "com.microsoft": 1], domain: "{DOMAIN}">\n{signature} {{{body}}}'
    return parser.parse_function(text)


def _rotate(config: NeoXConfig) -> str:
    """q and k together as 2 * heads heads: one rotation for both. Gives qk_rotated [B, T, 2 * heads, head_dim], v."""
    half, d, rest = config.rotary_dim // 2, config.hidden_size, config.head_dim - config.rotary_dim
    pieces, widths = ("a, b, rest", f"[{half}, {half}, {rest}]") if rest else ("a, b", f"[{half}, {half}]")
    tail = ", rest" if rest else ""
    return f"""
        qk_v = Constant <value_ints: ints = [{2 * d}, {d}]> ()
        qk_packed, v = Split <axis: int = -1> (qkv, qk_v)
        by_head = Constant <value_ints: ints = [0, 0, {2 * config.num_heads}, {config.head_dim}]> ()
        qk_heads = Reshape (qk_packed, by_head)
        widths = Constant <value_ints: ints = {widths}> ()
        {pieces} = Split <axis: int = -1> (qk_heads, widths)
        head_axis = Constant <value_ints: ints = [2]> ()
        cos_at = Gather (cos, position_ids)
        sin_at = Gather (sin, position_ids)
        c = Unsqueeze (cos_at, head_axis)
        s = Unsqueeze (sin_at, head_axis)
        a_c = Mul (a, c)
        b_s = Mul (b, s)
        b_c = Mul (b, c)
        a_s = Mul (a, s)
        turned_a = Sub (a_c, b_s)
        turned_b = Add (b_c, a_s)
        qk_rotated = Concat <axis: int = -1> (turned_a, turned_b{tail})
    """


def _shaped(config: NeoXConfig) -> str:
    """attention as it is, [B, T, hidden], by the T of position_ids, whose numbers GroupQueryAttention does not need.

    Not its input: of one whose last dimension is computed, ONNX Runtime before 1.31 takes the output to be as wide,
    and refuses the product that follows.
    """
    return f"""
        tokens = Shape <start: int = 1, end: int = 2> (position_ids)
        rows = Constant <value_ints: ints = [0]> ()
        width = Constant <value_ints: ints = [{config.hidden_size}]> ()
        attention_shape = Concat <axis: int = 0> (rows, tokens, width)
        attention = Reshape (attended, attention_shape)
    """


def _by_head(config: NeoXConfig) -> str:
    """query, key, value [B, heads, T, head_dim] A; total, new: how many tokens, [] int64. `past` comes next."""
    return f"""
        q4, k4 = Split <axis: int = 2, num_outputs: int = 2> (qk_rotated)
        v_by_head = Constant <value_ints: ints = [0, 0, {config.num_heads}, {config.head_dim}]> ()
        v4 = Reshape (v, v_by_head)
        query = Transpose <perm: ints = [0, 2, 1, 3]> (q4)
        key = Transpose <perm: ints = [0, 2, 1, 3]> (k4)
        value = Transpose <perm: ints = [0, 2, 1, 3]> (v4)
        total = Cast <to: int = 7> (total_length)
        first_axis = Constant <value_ints: ints = [0]> ()
        second_axis = Constant <value_ints: ints = [1]> ()
        new_1d = Shape <start: int = 1, end: int = 2> (position_ids)
        new = Squeeze (new_1d, first_axis)
    """


_PAST = """
        past = Sub (total, new)
"""
# Of every row's total_length - 1, for the sake of seqlens_k, which these bodies would not read otherwise.
_PAST_OF_LENGTHS = """
        newest = ReduceMax <keepdims: int = 0> (seqlens_k)
        newest_64 = Cast <to: int = 7> (newest)
        one_token = Constant <value_int: int = 1> ()
        before_newest = Sub (new, one_token)
        past = Sub (newest_64, before_newest)
"""

# A body goes on by storing the new tokens, which gives keys, values [B, heads, total, head_dim] to read, and attends.
# Of a cache that grows they are the outputs themselves. Behind an Identity, OpenVINO calls an output by its inner name.
_GROWING = """
        present_key = Concat <axis: int = 2> (past_key, key)
        present_value = Concat <axis: int = 2> (past_value, value)
"""


def _converted(cache: str, dtype: str) -> str:
    """Store as `cache` and read back as A; of int8 the codes are read, in float32, and beside them their scales.

    `total` is made one-dimensional even where it is so already: optimisers of transformers (Olive's) take the Reshape
    away that made it a scalar. The new tokens go between what lies before them in the buffer and what lies behind:
    nothing, in a cache that grows.
    """
    text = """
        places = Constant <value_ints: ints = [2]> ()
        start = Constant <value_ints: ints = [0]> ()
        end = Constant <value_ints: ints = [9223372036854775807]> ()
        past_1d = Unsqueeze (past, first_axis)
        one_dimension = Constant <value_ints: ints = [-1]> ()
        total_1d = Reshape (total, one_dimension)
    """
    if cache == "int8":
        text += """
        last_axis = Constant <value_ints: ints = [-1]> ()
        most = Constant <value: tensor = float {127.0}> ()
        none = Constant <value: tensor = float {0.0}> ()
        unit = Constant <value: tensor = float {1.0}> ()
        """
    for part in ("key", "value"):
        if cache == "int8":
            text += f"""
        {part}_float = Cast <to: int = {_ELEMENT["float32"]}> ({part})
        {part}_size = Abs ({part}_float)
        {part}_peak = ReduceMax <keepdims: int = 0> ({part}_size, last_axis)
        new_{part}_scale = Div ({part}_peak, most)
        {part}_is_zero = Equal (new_{part}_scale, none)
        {part}_divisor = Where ({part}_is_zero, unit, new_{part}_scale)
        {part}_step = Unsqueeze ({part}_divisor, last_axis)
        {part}_ratio = Div ({part}_float, {part}_step)
        {part}_round = Round ({part}_ratio)
            """
        rounded = f"{part}_round" if cache == "int8" else part
        text += f"\n        new_{part} = Cast <to: int = {_ELEMENT[cache]}> ({rounded})"
        text += _joined(part)
        if cache == "int8":
            text += _joined(f"{part}_scale")
            text += f"\n        {part}s = Cast <to: int = {_ELEMENT['float32']}> (read_{part})"
        else:
            text += f"\n        {part}s = Cast <to: int = {_ELEMENT[dtype]}> (read_{part})"
    return text


def _joined(part: str) -> str:
    """present_`part`, and of it read_`part`, the first `total` places."""
    return f"""
        before_{part} = Slice (past_{part}, start, past_1d, places)
        behind_{part} = Slice (past_{part}, total_1d, end, places)
        present_{part} = Concat <axis: int = 2> (before_{part}, new_{part}, behind_{part})
        read_{part} = Slice (present_{part}, start, total_1d, places)"""


def _number(name: str, value: float, dtype: str) -> str:
    """Return the text of a constant [] of `dtype`; the parser reads a float16 as the whole number of its bits."""
    if dtype == "float16":
        return f"        {name} = Constant <value: tensor = float16 {{{int(np.float16(value).view(np.uint16))}}}> ()"
    return f"        {name} = Constant <value: tensor = float {{{value!r}}}> ()"


def _attend(config: NeoXConfig, dtype: str, cache: str | None) -> str:
    """Causal softmax attention of query over keys and values, in standard operators.

    The scales of int8 multiply scores and weights, one number a token, and not each code.
    """
    keys, values = ("present_key", "present_value") if cache is None else ("keys", "values")
    by_key = by_value = to_float = to_dtype = ""
    scores, weights, read, bias, flat = "products", "shares", "query", "attention_bias", "attention"
    kind = "float32" if cache == "int8" else dtype  # what attention computes in
    if cache == "int8":
        scores, weights = "scores", "weights"
        by_key, by_value = (
            f"""
        {part}_row = Unsqueeze (read_{part}_scale, row_axis)
        {out} = Mul ({of}, {part}_row)"""
            for part, of, out in (("key", "products", "scores"), ("value", "shares", "weights"))
        )
        by_key = "\n        row_axis = Constant <value_ints: ints = [2]> ()" + by_key
        if dtype != "float32":
            read, bias, flat = "query_float", "bias_float", "attention_float"
            to_float = f"""
        query_float = Cast <to: int = {_ELEMENT["float32"]}> (query)
        bias_float = Cast <to: int = {_ELEMENT["float32"]}> (attention_bias)"""
            to_dtype = f"\n        attention = Cast <to: int = {_ELEMENT[dtype]}> (attention_float)"
    return f"""{to_float}
        one = Constant <value_int: int = 1> ()
        zero = Constant <value_int: int = 0> ()
        column = Range (zero, total, one)
        row_flat = Range (past, total, one)
        row = Unsqueeze (row_flat, second_axis)
        future = Greater (column, row)
{_number("lowest", LOWEST, kind)}
{_number("nought", 0.0, kind)}
        causal = Where (future, lowest, nought)
        mask = Add ({bias}, causal)
        keys_t = Transpose <perm: ints = [0, 1, 3, 2]> ({keys})
{_number("scale", 1 / math.sqrt(config.head_dim), kind)}
        query_scaled = Mul ({read}, scale)
        products = MatMul (query_scaled, keys_t){by_key}
        masked = Add ({scores}, mask)
        shares = Softmax <axis: int = -1> (masked){by_value}
        mixed = MatMul ({weights}, {values})
        mixed_t = Transpose <perm: ints = [0, 2, 1, 3]> (mixed)
        packed_heads = Constant <value_ints: ints = [0, 0, {config.hidden_size}]> ()
        {flat} = Reshape (mixed_t, packed_heads){to_dtype}
    """
