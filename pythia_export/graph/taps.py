"""Values from inside the decoder as outputs of a graph, and changes to them as its inputs.

The file `taps.onnx` is the decoder over the same weights. Beside its logits it gives each place that was asked for,
under TransformerLens's name (model/hooks.py), at the tokens that the input `tap_positions` [batch, taps] int64 names:
places among the new tokens, 0 the first.

Each place has a change that is none: ``value * scale + add``, constants of 1 and 0 called ``<hook>.scale`` and
``<hook>.add``, which ONNX Runtime takes out when a session opens. A runtime that wants to change a place declares them
as inputs (runtime/pruned.py). q, k and v of a layer are one packed vector and have one change, ``blocks.0.attn.qkv``.
Pattern and final norm are inside an operator. Their changed path stands beside the plain one, and one node,
``<hook>/choice``, says which is read: a runtime gives it the other input, ``<hook>/changed``.

The plain path is the untapped graph's, node for node, so that its logits are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from ..model.hooks import tap_of
from ..model.neox import FINAL_NORM, NeoXConfig
from .ops import LOWEST

if TYPE_CHECKING:
    from .decoder import _Tape

POSITIONS = "tap_positions"
TURNS = "tap_turns"  # by how many places the queries of a pattern are rotated: as the cached keys are


class Taps:
    """The hooks that one graph serves; adds what gives them to a tape."""

    def __init__(self, config: NeoXConfig, hooks: Sequence[str], kind: int) -> None:
        self.config = config
        self.hooks = frozenset(hooks)
        self.kind = kind
        self.outputs: list[onnx.ValueInfoProto] = []

    def inputs(self) -> list[onnx.ValueInfoProto]:
        patterns = any(tap_of(hook)[0].name == "attn.pattern" for hook in self.hooks)
        names = [POSITIONS, TURNS] if patterns else [POSITIONS]
        return [helper.make_tensor_value_info(name, TensorProto.INT64, ("batch_size", "taps")) for name in names]

    def at(self, tape: _Tape, hook: str, x: str, width: int) -> str:
        """Give `x` [batch, tokens, width] as the output `hook`; return what goes on: x, or what it is changed to."""
        if hook not in self.hooks:
            return x
        x = self._change(tape, hook, x, width)
        self._picked(tape, hook, x)
        self._give(tape, hook)
        return x

    def heads(self, tape: _Tape, hook: str, x: str) -> str:
        """As `at`, of a value of all heads, [batch, tokens, hidden]; given [batch, taps, heads, head_dim]."""
        if hook not in self.hooks:
            return x
        x = self._change(tape, hook, x, self.config.hidden_size)
        self._by_head(tape, hook, self._picked(tape, hook, x))
        self._give(tape, hook)
        return x

    def qkv(self, tape: _Tape, layer: int, x: str) -> str:
        """As `at`, of q, k and v packed, [batch, tokens, 3 * hidden]."""
        at, d = f"blocks.{layer}.attn", self.config.hidden_size
        asked = [(hook, i) for i, part in enumerate("qkv") if (hook := f"{at}.hook_{part}") in self.hooks]
        if not asked:
            return x
        x = self._change(tape, f"{at}.qkv", x, 3 * d)
        picked = self._picked(tape, f"{at}.qkv", x)
        for hook, part in asked:
            self._by_head(tape, hook, self._part(tape, hook, picked, part))
            self._give(tape, hook)
        return x

    def pattern(
        self, tape: _Tape, layer: int, qkv: str, present: Sequence[str], mixed: str, static: Sequence[str] = ()
    ) -> str:
        """Give softmax(q k^T) of a layer, [batch, heads, taps, total]; return `mixed`, what it makes of the values, or
        a choice between that and what a changed pattern does. `present` is the layer's cache, with scales if of int8;
        `static` are its scales where they are constants.

        The changed path takes the pattern of the tokens that are tapped: who changes it taps them all.
        """
        hook = f"blocks.{layer}.attn.hook_pattern"
        if hook not in self.hooks:
            return mixed
        q = self._by_head(tape, hook, self._part(tape, hook, self._picked(tape, hook, qkv), 0))
        q = tape.node("Transpose", f"{hook}/q/Transpose", [self._turned(tape, hook, q)], perm=[0, 2, 1, 3])
        q = tape.node("Cast", f"{hook}/q/Cast", [q], to=TensorProto.FLOAT)
        scale = tape.constant("taps.scale", TensorProto.FLOAT, [], [1 / math.sqrt(self.config.head_dim)])
        q = tape.node("Mul", f"{hook}/q/Mul", [q, scale])
        keys = tape.node(
            "Transpose", f"{hook}/k/Transpose", [self._cached(tape, hook, "k", present, static)], perm=[0, 1, 3, 2]
        )
        scores = tape.node("MatMul", f"{hook}/MatMul", [q, keys])
        scores = tape.node("Add", f"{hook}/Add", [scores, self._mask(tape)])
        shares = tape.node("Softmax", f"{hook}/Softmax", [scores], axis=-1)
        shares = tape.node("Cast", f"{hook}/Cast", [shares], to=self.kind)
        shares = self._change(tape, hook, shares, None)
        tape.node("Identity", f"{hook}/Identity", [shares])
        self._give(tape, hook)
        values = tape.node(
            "Cast", f"{hook}/v/float/Cast", [self._cached(tape, hook, "v", present, static)], to=self.kind
        )
        z = tape.node("MatMul", f"{hook}/z/MatMul", [shares, values])
        z = tape.node("Transpose", f"{hook}/z/Transpose", [z], perm=[0, 2, 1, 3])
        flat = tape.constant("taps.flat", TensorProto.INT64, [3], [0, 0, self.config.hidden_size])
        tape.node("Reshape", f"{hook}/z/Reshape", [z, flat])
        return tape.typed(self._choice(tape, hook, mixed), self.kind, self.config.hidden_size)

    def final(self, tape: _Tape, x: str, normed: str, last: Callable[[str], str]) -> str:
        """Give the last stream x, normalised; return `normed`, which is what plainly follows of it, or a choice.

        `last` takes the tokens that get logits.
        """
        hook = "ln_final.hook_normalized"
        if hook not in self.hooks:
            return normed
        d, epsilon = self.config.hidden_size, self.config.layer_norm_eps
        ones = tape.constant("taps.ones", self.kind, [d], [1.0] * d)
        unit = tape.node("LayerNormalization", f"{hook}/LayerNormalization", [x, ones], axis=-1, epsilon=epsilon)
        changed = self._change(tape, hook, unit, d)
        self._picked(tape, hook, changed)
        self._give(tape, hook)
        weight, bias = (tape.weight(f"{FINAL_NORM}.{part}") for part in ("weight", "bias"))
        scaled = tape.node("Mul", f"{hook}/weight/Mul", [last(changed), weight])
        tape.node("Add", f"{hook}/bias/Add", [scaled, bias])
        return self._choice(tape, hook, normed)

    def _choice(self, tape: _Tape, hook: str, plain: str) -> str:
        """The plain value, in whose place a runtime that changes this hook has the last node's output read."""
        tape.nodes[-1].output[0] = f"{hook}/changed"
        return tape.node("Identity", f"{hook}/choice", [plain])

    def _cached(self, tape: _Tape, hook: str, part: str, present: Sequence[str], static: Sequence[str]) -> str:
        """The keys or values of all tokens so far, [batch, heads, total, head_dim] float32."""
        at, which = f"{hook}/{part}", "kv".index(part)

        def valid(name: str, cached: str) -> str:  # a shared buffer is longer than what it holds
            begin, axis = (tape.constant(f"taps.{n}", TensorProto.INT64, [1], [n]) for n in (0, 2))
            return tape.node("Slice", f"{name}/Slice", [cached, begin, self._total(tape), axis])

        found = tape.node("Cast", f"{at}/Cast", [valid(at, present[which])], to=TensorProto.FLOAT)
        if static:
            return tape.node("Mul", f"{at}/Mul", [found, static[which]])
        if len(present) == 2:
            return found
        last = tape.constant("taps.-1", TensorProto.INT64, [1], [-1])
        scale = tape.node("Unsqueeze", f"{at}/scale/Unsqueeze", [valid(f"{at}/scale", present[2 + which]), last])
        return tape.node("Mul", f"{at}/Mul", [found, scale])

    def _turned(self, tape: _Tape, hook: str, q: str) -> str:
        """q [batch, taps, heads, head_dim], its first dimensions rotated by `TURNS`."""
        half, rest = self.config.rotary_dim // 2, self.config.head_dim - self.config.rotary_dim
        sizes = [half, half, rest] if rest else [half, half]
        widths = tape.constant("taps.widths", TensorProto.INT64, [len(sizes)], sizes)
        parts = [f"{hook}/q/{part}" for part in ("a", "b", "rest")[: len(sizes)]]
        tape.nodes.append(helper.make_node("Split", [q, widths], parts, name=f"{hook}/q/Split", axis=-1))
        a, b = parts[:2]

        def table(part: str) -> str:
            def make() -> str:
                at = tape.node("Gather", f"/taps/{part}/Gather", [tape.weight(f"rotary.{part}"), TURNS])
                axis = tape.constant("taps.2", TensorProto.INT64, [1], [2])
                return tape.node("Unsqueeze", f"/taps/{part}/Unsqueeze", [at, axis])

            return tape.once(f"taps.{part}", make)

        def product(name: str, x: str, y: str) -> str:
            return tape.node("Mul", f"{hook}/q/{name}/Mul", [x, y])

        c, s = table("cos"), table("sin")
        turned_a = tape.node("Sub", f"{hook}/q/Sub", [product("ac", a, c), product("bs", b, s)])
        turned_b = tape.node("Add", f"{hook}/q/Add", [product("bc", b, c), product("as", a, s)])
        return tape.node("Concat", f"{hook}/q/Concat", [turned_a, turned_b, *parts[2:]], axis=-1)

    def _total(self, tape: _Tape) -> str:
        return tape.once(
            "taps.total", lambda: tape.node("Shape", "/taps/total/Shape", ["attention_mask"], start=1, end=2)
        )

    def _mask(self, tape: _Tape) -> str:
        """What is added to scores, [batch, 1, taps, total] float32: hides padding and what comes later."""

        def make() -> str:
            scalar = tape.constant("scalar", TensorProto.INT64, [0], [])
            total = tape.node("Reshape", "/taps/total/Reshape", [self._total(tape), scalar])
            zero = tape.constant("zero", TensorProto.INT64, [], [0])
            one = tape.constant("taps.one", TensorProto.INT64, [], [1])
            hide = tape.constant("taps.hide", TensorProto.FLOAT, [], [LOWEST])
            show = tape.constant("taps.show", TensorProto.FLOAT, [], [0.0])
            column = tape.node("Range", "/taps/mask/Range", [zero, total, one])
            new = tape.node("Shape", "/taps/mask/Shape", ["position_ids"], start=1, end=2)
            past = tape.node("Sub", "/taps/mask/past/Sub", [self._total(tape), new])
            row = tape.node("Add", "/taps/mask/row/Add", [POSITIONS, past])
            axes = tape.constant("taps.axes13", TensorProto.INT64, [2], [1, 3])
            row = tape.node("Unsqueeze", "/taps/mask/row/Unsqueeze", [row, axes])
            future = tape.node("Greater", "/taps/mask/Greater", [column, row])
            causal = tape.node("Where", "/taps/mask/causal/Where", [future, hide, show])
            padding = tape.node("Equal", "/taps/mask/padding/Equal", ["attention_mask", zero])
            padded = tape.node("Where", "/taps/mask/padding/Where", [padding, hide, show])
            axes12 = tape.constant("axes12", TensorProto.INT64, [2], [1, 2])
            padded = tape.node("Unsqueeze", "/taps/mask/padding/Unsqueeze", [padded, axes12])
            return tape.node("Add", "/taps/mask/Add", [causal, padded])

        return tape.once("taps.mask", make)

    def _change(self, tape: _Tape, hook: str, x: str, width: int | None) -> str:
        scale = tape.constant(f"{hook}.scale", self.kind, [], [1.0])
        add = tape.constant(f"{hook}.add", self.kind, [], [0.0])
        scaled = tape.node("Mul", f"{hook}/change/Mul", [x, scale])
        added = tape.node("Add", f"{hook}/change/Add", [scaled, add])
        return added if width is None else tape.typed(added, self.kind, width)

    def _picked(self, tape: _Tape, hook: str, x: str) -> str:
        """The tokens of x [batch, tokens, width] that `POSITIONS` names, [batch, taps, width]."""

        def make() -> str:
            last = tape.constant("taps.-1", TensorProto.INT64, [1], [-1])
            return tape.node("Unsqueeze", "/taps/positions/Unsqueeze", [POSITIONS, last])

        return tape.node("GatherND", f"{hook}/GatherND", [x, tape.once("taps.positions", make)], batch_dims=1)

    def _part(self, tape: _Tape, hook: str, qkv: str, part: int) -> str:
        """q (0), k (1) or v (2) of the three."""
        d = self.config.hidden_size
        begin, end = (tape.constant(f"taps.{n}d", TensorProto.INT64, [1], [n * d]) for n in (part, part + 1))
        last = tape.constant("taps.-1", TensorProto.INT64, [1], [-1])
        return tape.node("Slice", f"{hook}/Slice", [qkv, begin, end, last])

    def _by_head(self, tape: _Tape, hook: str, x: str) -> str:
        shape = tape.constant("taps.heads", TensorProto.INT64, [4], [0, 0, self.config.num_heads, self.config.head_dim])
        return tape.node("Reshape", f"{hook}/Reshape", [x, shape])

    def _give(self, tape: _Tape, hook: str) -> None:
        """Let the last node's output be the graph's output `hook`."""
        tape.hand_out(hook)
        c = self.config
        shape: tuple[str | int, ...]
        match tap_of(hook)[0].shape:
            case "heads":
                shape = ("batch_size", "taps", c.num_heads, c.head_dim)
            case "pattern":
                shape = ("batch_size", c.num_heads, "taps", "total_sequence_length")
            case "mlp":
                shape = ("batch_size", "taps", c.intermediate_size)
            case _:
                shape = ("batch_size", "taps", c.hidden_size)
        self.outputs.append(helper.make_tensor_value_info(hook, self.kind, shape))
