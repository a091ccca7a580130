"""What a target cannot run, or runs far slower than anyone would expect."""

from __future__ import annotations

import math

from ..base.errors import RecipeError
from ..model.hooks import hooks_of, tap_of
from ..model.neox import EMBEDDING, NeoXConfig
from ..recipe import Export
from ..weights.layout import EMBEDDING_BLOCK, Layout
from .decoder import ROUNDING_BLOCKS, for_browsers

CUDA_HEAD_DIM = 256  # of our kernel, and of ONNX Runtime's GroupQueryAttention
FELT_WEIGHTS = 2**20  # as many cost at most a millisecond a token by the slow kernel: the demo's head has half of it
SUMMED = ("attn.out", "mlp.out")  # taps that products = 2 does not compute: one product sums them
WEB_BYTES = 2**31 - 1  # the longest ArrayBuffer that every browser makes; ONNX Runtime Web reads a file into one


def require_fit(config: NeoXConfig, layout: Layout, export: Export) -> None:
    """Refuse what the target cannot load.

    Raises:
        RecipeError: weights beyond what a browser reads into memory, or a geometry that an operator does not take.
    """
    converted = export.cache_dtype != export.dtype and not export.static_scales  # its function has standard operators
    if config.head_dim % 8 and export.rotary != "onnx" and not converted:
        raise RecipeError(
            f"rotary = '{export.rotary}': heads of {config.head_dim} dimensions; ONNX Runtime's GroupQueryAttention "
            "takes multiples of 8",
            hint="Use rotary = 'onnx'.",
        )
    if export.target == "cuda" and config.head_dim > CUDA_HEAD_DIM and export.rotary != "onnx":
        raise RecipeError(
            f"target = 'cuda': heads of {config.head_dim} dimensions; attention on a GPU takes at most {CUDA_HEAD_DIM}",
            hint="Use rotary = 'onnx'.",
        )
    require_taps(config, layout, export)
    table = layout.slots.get(f"{EMBEDDING}.qweight")
    whole = EMBEDDING_BLOCK if for_browsers(export) else 2
    if table is not None and config.hidden_size % whole:
        raise RecipeError(
            f"an embedding of int4 or int8 with rows of {config.hidden_size}; multiples of {whole} were expected for "
            f"target = '{export.target}', layout = '{export.layout}'",
            hint="Use embedding = 'float16' or 'float32'.",
        )
    if export.target == "web" and layout.nbytes > WEB_BYTES:
        raise RecipeError(
            f"target = 'web': the weights take {layout.nbytes / 1e9:.1f} GB, and browsers load a file of at most "
            f"{WEB_BYTES / 1e9:.1f} GB",
            hint="Use fewer bits, a smaller embedding (`embedding = 'int4'`) or a smaller model.",
        )


def require_taps(config: NeoXConfig, layout: Layout, export: Export) -> None:
    """Refuse taps of places that the graph does not compute.

    Raises:
        RecipeError: the output of a branch, where one product sums both; the stream between branches that are parallel.
    """
    apart = [name for name in export.taps if name in SUMMED]
    if layout.fused and apart:
        raise RecipeError(
            f"taps: {apart[0]} is not computed with products = 2, which sums the outputs of attention and MLP in one "
            "product",
            hint="Tap attn.z, mlp.post and resid, or quantise with products = 4.",
        )
    if config.parallel_residual and "resid_mid" in export.taps:
        raise RecipeError(
            "taps: resid_mid is of models whose MLP reads what attention wrote; in this one both read one stream",
            hint="Tap resid: the stream before and after each layer.",
        )


def tapped_hooks(config: NeoXConfig, layout: Layout, export: Export) -> tuple[str, ...]:
    """Return the hooks that the tapped graph of an export gives, in the order of a pass."""
    unknown = ("attn.out", "mlp.out") if layout.fused else ()
    return tuple(hook for hook in hooks_of(export.taps, config) if tap_of(hook)[0].name not in unknown)


def warnings(layout: Layout, export: Export) -> list[str]:
    """Return one sentence for each combination that works and is not worth shipping."""
    if export.target != "cpu":
        return []
    return _slow(layout) if export.accuracy_level == 0 else _kept_in_float(layout)


def _slow(layout: Layout) -> list[str]:
    """MatMulNBits at accuracy level 0 has a fast CPU kernel for 4 bits alone.

    Others first unpack each block to float: one token through [50304, 1024] took 260 ms at 8 bits, 6.5 at 4, 2.6 at 8
    bits and level 4; through [4096, 128] 0.48, 0.09 and 0.04 (onnxruntime 1.31.1, two threads of an EPYC with AVX2).
    """
    found = [p for p in layout.linears.values() if p.method != "none" and p.stored_bits != 4]
    if sum(math.prod(p.shape) for p in found) < FELT_WEIGHTS:
        return []
    bits = " and ".join(str(b) for b in sorted({p.stored_bits for p in found}))
    which = found[0].name if len(found) == 1 else f"{len(found)} linears, {found[0].name} first,"
    return [
        f"{which} of {bits} bits at accuracy level 0: ONNX Runtime's CPU kernel decodes these ten (small) to a "
        "hundred times (large) slower than at level 4. Set accuracy_level = 4, or store them in 4 bits."
    ]


def _kept_in_float(layout: Layout) -> list[str]:
    """ONNX Runtime takes no notice of accuracy level 4 at 2 bits in blocks of 16 and of 256, and does not say so."""
    found = [
        plan
        for plan in layout.linears.values()
        if plan.method != "none" and plan.stored_bits == 2 and plan.block_size not in ROUNDING_BLOCKS
    ]
    if not found:
        return []
    which = found[0].name if len(found) == 1 else f"{len(found)} linears, {found[0].name} first,"
    blocks = " and ".join(str(b) for b in sorted({plan.block_size for plan in found}))
    return [
        f"{which} of 2 bits in blocks of {blocks}: accuracy_level = 4 does nothing there. ONNX Runtime keeps the "
        "activations in float, which is slower; at 2 bits it rounds them in blocks of 32, 64 and 128."
    ]
