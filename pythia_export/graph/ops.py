"""pythia.RotaryAttention: the contract of our operator, and the function bodies that let any ONNX Runtime run it.

| input | shape, type | |
|---|---|---|
| qkv | [B, T, 3 * hidden] float | packed q, k, v; each [heads, head_dim], not yet rotated |
| past_key, past_value | [B, heads, P, head_dim] float, float16, int8 | rotated keys; P of a shared buffer: all of it |
| cos, sin | [max_positions, rotary_dim / 2] float | |
| position_ids | [B, T] int64 | |
| seqlens_k | [B] int32 | total_length - 1 for every row, left-padded or not |
| total_length | [] int32 | tokens cached after this call; T of them are new |
| attention_bias | [B, 1, T, total_length] float | added to the scores before softmax; hides padding |
| past_key_scale, past_value_scale | [B, heads, P] float | with a cache of int8, and only then |

Outputs: attention [B, T, hidden]; present_key, present_value [B, heads, max(P, total_length), head_dim]; with a cache
of int8 present_key_scale, present_value_scale [B, heads, max(P, total_length)].
Attributes: num_heads, rotary_dim. Causal; scores are scaled by 1 / sqrt(head_dim); the first rotary_dim dimensions of
each head of q and k turn half-split: ``(a, b) -> (a cos - b sin, b cos + a sin)``.

A cache of another type than the activations' holds what rounding leaves: float16, or int8 codes round(x / scale), half
to even, with scale = max|x| / 127 over one head of one token. What is cached is what attention reads, new tokens too,
so that one pass and token by token agree.

Rotation is relative, so a body may turn by the place in the cache where `position_ids` counts from the first token
that is not padding: outputs agree, cached keys differ by that row's constant turn.
"""

from __future__ import annotations

import math

import onnx
from onnx import parser

from ..neox import NeoXConfig

DOMAIN = "pythia"
OPSET = 21
LOWEST = -3e4  # hides a position from softmax; twice it is still a finite float16, so a row of padding alone is not NaN
_INPUTS = "qkv, past_key, past_value, cos, sin, position_ids, seqlens_k, total_length, attention_bias"
_OUTPUTS = "attention, present_key, present_value"
_SCALES = ("past_key_scale", "past_value_scale"), ("present_key_scale", "present_value_scale")
_ONNX_TYPES = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}


def rotary_attention(config: NeoXConfig, standard: bool, cache: str | None = None) -> onnx.FunctionProto:
    """The function body for one geometry, of standard ONNX operators or (faster) over GroupQueryAttention.

    `cache` is the type of the cache where it is not that of the activations: float16 or int8.
    """
    inputs, outputs = _INPUTS, _OUTPUTS
    if cache is not None:
        if cache == "int8":
            inputs, outputs = ", ".join((inputs, *_SCALES[0])), ", ".join((outputs, *_SCALES[1]))
        body = _rotate(config) + _by_head(config) + _converted_cache(cache) + _attend(config)
    elif standard:
        body = _rotate(config) + _by_head(config) + _grown_cache() + _attend(config)
    elif config.rotary_dim % 16 == 0:
        # GroupQueryAttention rotates by itself only where its tables' width is a multiple of 8.
        body = """
        attention, present_key, present_value = com.microsoft.GroupQueryAttention <
            num_heads: int = @num_heads, kv_num_heads: int = @num_heads, do_rotary: int = 1>
            (qkv, "", "", past_key, past_value, seqlens_k, total_length, cos, sin, "", attention_bias)
        """
    else:
        body = (
            _rotate(config)
            + f"""
        q_k = Constant <value_ints: ints = [0, 0, {2 * config.hidden_size}]> ()
        qk_flat = Reshape (qk_rotated, q_k)
        q, k = Split <axis: int = -1, num_outputs: int = 2> (qk_flat)
        attention, present_key, present_value = com.microsoft.GroupQueryAttention <
            num_heads: int = @num_heads, kv_num_heads: int = @num_heads, do_rotary: int = 0>
            (q, k, v, past_key, past_value, seqlens_k, total_length, "", "", "", attention_bias)
        """
        )
    text = (
        f'<opset_import: ["": {OPSET}, "com.microsoft": 1], domain: "{DOMAIN}">\n'
        f"RotaryAttention <num_heads, rotary_dim> ({inputs}) => ({outputs}) {{{body}}}"
    )
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


def _by_head(config: NeoXConfig) -> str:
    """query, key, value, each [B, heads, T, head_dim], rotated."""
    return f"""
        q4, k4 = Split <axis: int = 2, num_outputs: int = 2> (qk_rotated)
        v_by_head = Constant <value_ints: ints = [0, 0, {config.num_heads}, {config.head_dim}]> ()
        v4 = Reshape (v, v_by_head)
        query = Transpose <perm: ints = [0, 2, 1, 3]> (q4)
        key = Transpose <perm: ints = [0, 2, 1, 3]> (k4)
        value = Transpose <perm: ints = [0, 2, 1, 3]> (v4)
    """


def _grown_cache() -> str:
    """present = past, then what is new: for a cache that grows. Gives keys and values to read."""
    return """
        present_key = Concat <axis: int = 2> (past_key, key)
        present_value = Concat <axis: int = 2> (past_value, value)
        keys = Identity (present_key)
        values = Identity (present_value)
    """


def _converted_cache(cache: str) -> str:
    """What is new is rounded and put behind the valid places; the rest of a shared buffer, if any, stays behind it.

    Gives keys and values to read, in the activations' type.
    """
    body = """
        behind = Constant <value_ints: ints = [9223372036854775807]> ()
        none = Constant <value_ints: ints = [0]> ()
        tokens = Constant <value_ints: ints = [2]> ()
        last = Constant <value_ints: ints = [-1]> ()
        top = Constant <value_float: float = 127.0> ()
        nought_scale = Constant <value_float: float = 0.0> ()
        one_scale = Constant <value_float: float = 1.0> ()
        filled64 = Cast <to: int = 7> (total_length)
        filled = Reshape (filled64, last)
        fresh = Shape <start: int = 1, end: int = 2> (position_ids)
        before = Sub (filled, fresh)
    """
    for part in ("key", "value"):
        stored = [f"{part}"]
        if cache == "int8":
            stored.append(f"{part}_scale")
            body += f"""
        {part}_size = Abs ({part})
        {part}_most = ReduceMax <keepdims: int = 0> ({part}_size, last)
        {part}_scale_new = Div ({part}_most, top)
        {part}_silent = Equal ({part}_scale_new, nought_scale)
        {part}_safe = Where ({part}_silent, one_scale, {part}_scale_new)
        {part}_step = Unsqueeze ({part}_safe, last)
        {part}_steps = Div ({part}, {part}_step)
        {part}_rounded = Round ({part}_steps)
        {part}_new = Cast <to: int = {_ONNX_TYPES[cache]}> ({part}_rounded)
            """
        else:
            body += f"""
        {part}_new = Cast <to: int = {_ONNX_TYPES[cache]}> ({part})
            """
        for name in stored:
            body += f"""
        {name}_kept = Slice (past_{name}, none, before, tokens)
        {name}_after = Slice (past_{name}, filled, behind, tokens)
        present_{name} = Concat <axis: int = 2> ({name}_kept, {name}_new, {name}_after)
        {name}_valid = Concat <axis: int = 2> ({name}_kept, {name}_new)
            """
        body += f"""
        {part}_read = CastLike ({part}_valid, qkv)
        """
        if cache == "int8":
            body += f"""
        {part}_steps_read = Unsqueeze ({part}_scale_valid, last)
        {part}s = Mul ({part}_read, {part}_steps_read)
            """
        else:
            body += f"""
        {part}s = Identity ({part}_read)
            """
    return body


def _attend(config: NeoXConfig) -> str:
    return f"""
        total = Cast <to: int = 7> (total_length)
        one = Constant <value_int: int = 1> ()
        zero = Constant <value_int: int = 0> ()
        first_axis = Constant <value_ints: ints = [0]> ()
        second_axis = Constant <value_ints: ints = [1]> ()
        new_1d = Shape <start: int = 1, end: int = 2> (position_ids)
        new = Squeeze (new_1d, first_axis)
        past = Sub (total, new)
        column = Range (zero, total, one)
        row_flat = Range (past, total, one)
        row = Unsqueeze (row_flat, second_axis)
        future = Greater (column, row)
        lowest = Constant <value_float: float = {LOWEST}> ()
        nought = Constant <value_float: float = 0.0> ()
        hidden_value = CastLike (lowest, attention_bias)
        none_value = CastLike (nought, attention_bias)
        causal = Where (future, hidden_value, none_value)
        mask = Add (attention_bias, causal)
        key_t = Transpose <perm: ints = [0, 1, 3, 2]> (keys)
        scale_f = Constant <value_float: float = {1 / math.sqrt(config.head_dim)!r}> ()
        scale = CastLike (scale_f, query)
        query_scaled = Mul (query, scale)
        scores = MatMul (query_scaled, key_t)
        masked = Add (scores, mask)
        weights = Softmax <axis: int = -1> (masked)
        mixed = MatMul (weights, values)
        mixed_t = Transpose <perm: ints = [0, 2, 1, 3]> (mixed)
        flat = Constant <value_ints: ints = [0, 0, {config.hidden_size}]> ()
        attention = Reshape (mixed_t, flat)
    """
