"""[export]: the graph and where it will run."""

from __future__ import annotations

import difflib
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ..model.hooks import BY_NAME, GROUPS
from .section import Section


class Export(Section):
    target: Literal["cpu", "cuda", "web"] = Field("cpu", description="where the graph will run")
    rotary: Literal["custom", "gqa", "onnx"] = Field(
        "custom",
        description="`custom`: the op pythia.RotaryAttention, carried as a function over ONNX Runtime's ops; "
        "`gqa`: those ops directly; `onnx`: standard ONNX attention",
    )
    accuracy_level: Literal[0, 4] = Field(
        0, description="of MatMulNBits: 4 rounds activations to int8 (faster on CPUs), 0 keeps them in float"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="type of activations and scales; `float16` is for CUDA"
    )
    kv_cache: Literal["float32", "float16", "int8"] | None = Field(
        None,
        description='type of cached keys and values; as `dtype` if not given. With `rotary = "custom"`, `int8` has a '
        "scale for each head and token; the native kernels read a smaller cache faster, and without them it is "
        'converted at every step. With `rotary = "gqa"`, `int8` has a fixed scale for each channel, measured on the '
        "text of `[calibration]`: ONNX Runtime's own quantised cache, which onnxruntime-genai runs too",
    )

    layout: Literal["flat", "transformers.js"] = Field(
        "flat",
        description="`flat`: model.onnx beside its weights; `transformers.js`: both under onnx/ by the names that "
        "transformers.js looks for, and a second graph at the root that reads the same weights, for all others",
    )

    taps: tuple[str, ...] = Field(
        (),
        description="a second graph, taps.onnx, gives values from inside the model: `resid` (the residual stream), "
        "`attn.pattern`, `mlp.post`, ..., or `all`",
    )

    @field_validator("taps")
    @classmethod
    def _taps_are_known(cls, taps: tuple[str, ...]) -> tuple[str, ...]:
        known = (*GROUPS, *BY_NAME)
        for name in taps:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
                nearest = f"; the nearest are {', '.join(near)}" if near else ""
                raise ValueError(f"no tap is called {name!r}{nearest}. They are {', '.join(known)}")
        return taps

    @property
    def cache_dtype(self) -> Literal["float32", "float16", "int8"]:
        return self.kv_cache or self.dtype

    @property
    def reads_three_bits(self) -> bool:
        """Whether our kernels, which read codes of 3 bits as they are stored, may run the graph."""
        return self.target == "cpu" and self.rotary == "custom" and self.layout == "flat"

    @property
    def static_scales(self) -> bool:
        """Whether the cache is of int8 by scales that the graph holds, as GroupQueryAttention has them."""
        return self.cache_dtype == "int8" and self.rotary == "gqa"

    @model_validator(mode="after")
    def _converted_cache_runs(self) -> Self:
        if self.cache_dtype == self.dtype:
            return self
        fits = self.rotary == "custom" or self.static_scales
        if not fits or self.target != "cpu":
            rotary = "'custom' or 'gqa'" if self.kv_cache == "int8" else "'custom'"
            raise ValueError(
                f"kv_cache = '{self.kv_cache}' with activations of {self.dtype} needs rotary = {rotary} and "
                f"target = 'cpu', not '{self.rotary}' and '{self.target}'"
            )
        if self.static_scales and self.layout == "transformers.js":
            raise ValueError(
                "kv_cache = 'int8' with rotary = 'gqa' needs layout = 'flat': transformers.js makes a cache of floats"
            )
        return self

    @model_validator(mode="after")
    def _cpu_is_float32(self) -> Self:
        if self.dtype == "float16" and self.target != "cuda":
            raise ValueError("dtype = 'float16' is for target = 'cuda'")
        return self
