"""The rotary tables: cos and sin of every position, plain or scaled, as transformers computes them.

RoFormer (arXiv 2104.09864, section 3.2.2): position p turns pair i by ``p * base ** (-2i / n)`` of n dimensions. Models
that read further than they were trained scale these frequencies (transformers' modeling_rope_utils.py):

- linear: every frequency is divided by `factor`;
- llama3: low frequencies are divided by `factor`, high ones are kept, those between are interpolated;
- yarn (arXiv 2309.00071): likewise, by dimension, and cos and sin are multiplied by an attention factor;
- dynamic: plain up to `max_position_embeddings`, where an artifact's context ends. Beyond, each new length would have
  frequencies of its own, and cached keys would stay turned by those of the lengths before.

float64: a checkpoint's own `inv_freq` is rounded and not used, and transformers' float32 angles are off by up to 1e-4
radians at position 2,000.
"""

from __future__ import annotations

import math

import numpy as np

from .neox import NeoXConfig
from .rope import Rope


def rotary_tables(config: NeoXConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, each [max_positions, rotary_dim / 2] float64."""
    frequencies, stretch = _frequencies(config)
    angle = np.outer(np.arange(config.max_positions, dtype=np.float64), frequencies)
    return np.cos(angle) * stretch, np.sin(angle) * stretch


def _frequencies(config: NeoXConfig) -> tuple[np.ndarray, float]:
    """Radians per position of each pair [rotary_dim / 2], and what cos and sin are multiplied by."""
    rope, n = config.rope, config.rotary_spread
    plain = config.rotary_base ** (-np.arange(0, n, 2, dtype=np.float64) / n)
    match rope.type:
        case "linear":
            return plain / rope["factor"], 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(config, plain), _yarn_stretch(rope)
        case "default" | "dynamic":
            return plain, 1.0


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    factor, low, high = (rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = rope["original_max_position_embeddings"] * plain / (2 * np.pi)  # of each pair within the trained context
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / factor)


def _yarn(config: NeoXConfig, plain: np.ndarray) -> np.ndarray:
    n, given = config.rotary_spread, dict(config.rope.settings)
    trained = given.get("original_max_position_embeddings") or config.max_positions

    def dimension(turns: float) -> float:
        """That of the pair which turns so often within the trained context."""
        return n * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(config.rotary_base))

    low, high = dimension(given.get("beta_fast") or 32), dimension(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n - 1)
    if low == high:
        high += 0.001
    scaled = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    frequencies: np.ndarray = plain * (1 - scaled) + plain / given["factor"] * scaled
    return frequencies


def _yarn_stretch(rope: Rope) -> float:
    """YaRN's attention factor."""
    given = dict(rope.settings)

    def of(mscale: float) -> float:
        return 1.0 if given["factor"] <= 1 else 0.1 * mscale * math.log(given["factor"]) + 1.0

    if "attention_factor" in given:
        return given["attention_factor"]
    one, every = given.get("mscale"), given.get("mscale_all_dim")
    return of(one) / of(every) if one and every else of(1.0)
