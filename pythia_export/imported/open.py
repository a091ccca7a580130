"""A quantised checkpoint, opened: its format recognised, every tensor held to it, weights read one linear at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.errors import IntegrityError, PythiaExportError, SourceError
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_object, shown
from ..checkpoint import Opened, Pulled, dtype_of, held, settle_tied_head, stored_tensors
from ..checkpoint.pull import CONFIG, QUANTIZE_CONFIG, read_model
from ..checkpoint.read import DTYPES, StoredTensor
from ..model.generation import Generation
from ..model.neox import EMBEDDING, HEAD, IGNORED_BUFFERS, NeoXConfig, tensors
from ..recipe import Scheme
from ..recipe.scheme import Bits
from . import autoround, awq, compressed_tensors, gptq
from .fit import dequantised, nearest_scheme, scheme_of
from .stored import MATCH, ORDER, SAVE_AGAIN, Arrays, Format, Grid, Stored

FORMATS = (gptq, awq, autoround, compressed_tensors)  # a module each: METHODS, and `read` of a configuration
_READ: dict[str, Callable[[dict[str, Any], str], Format]] = {m: f.read for f in FORMATS for m in f.METHODS}
_CODEBOOK = "weights are numbers of a table, and MatMulNBits has steps of one size"
_FLOATS = "weights are floats of few bits, and MatMulNBits has steps of one size"
_OTHER = {
    "bitsandbytes": "NF4 and FP4 are tables of 16 values, and its 8 bits keep some columns in float",
    "aqlm": _CODEBOOK, "vptq": _CODEBOOK, "quip": _CODEBOOK, "higgs": _CODEBOOK, "spqr": _CODEBOOK, "exl3": _CODEBOOK,
    "exl2": "bits differ within a matrix", "fp8": _FLOATS, "fbgemm_fp8": _FLOATS, "mxfp4": _FLOATS, "nvfp4": _FLOATS,
    "modelopt": _FLOATS, "finegrained_fp8": _FLOATS, "hqq": "zero points are floats", "quanto": "its grid is not told",
    "torchao": "its files are pickles of its own classes", "eetq": "codes are in the order of its kernels",
    "marlin": "codes are in the order of its kernels", "bitblas": "codes are in the order of its kernels",
    "qqq": "activations are rounded too", "gguf": "it is another file format", "bitnet": "activations are rounded too",
    "mlx": "it is another file format", "paroquant": "inputs are rotated first",
}  # fmt: skip
_DEQUANTISE = (
    "Load it with its own tool, `model.dequantize()`, `save_pretrained`, and let `pythia-export run` quantise that; or "
    "run the original."
)


@dataclass(frozen=True)
class Linear:
    """One quantised linear [out, in] of a checkpoint, as it will be stored.

    groups: of each column [in], where they do not follow one another. scheme: how it is stored without rounding, or,
    `rounded`, on which grid it is rounded again, because its own does not fit.
    """

    name: str
    shape: tuple[int, int]
    grid: Grid
    tensors: Mapping[str, StoredTensor]
    groups: np.ndarray | None
    scheme: Scheme
    rounded: bool


class Imported(Opened):
    """An opened quantised checkpoint: every header has been read and held to its configuration, no weight has.

    `form` is its format, `settings` the configuration as it is in the file, `linears` those that are quantised.
    `tensor(name)` gives any weight as the quantiser's own library computes with it, in float32 where it is quantised.
    """

    def __init__(
        self,
        pulled: Pulled,
        config: NeoXConfig,
        generation: Generation,
        dtype: str,
        where: dict[str, StoredTensor],
        form: Format,
        settings: dict[str, Any],
        linears: dict[str, Linear],
    ) -> None:
        super().__init__(pulled, config, generation, dtype)
        self.form, self.settings, self.linears, self._where = form, settings, linears, where

    def tensor(self, name: str) -> Tensor:
        """Return one tensor by the table's name: as it is stored, or, of a quantised linear, what its codes stand for,
        float32.

        Raises:
            NumericsError: it holds a NaN or an infinity.
            IntegrityError: codes or zero points that its format cannot have.
        """
        linear = self.linears.get(name.removesuffix(".weight"))
        if linear is not None:
            return torch.from_numpy(dequantised(self.stored(linear), linear.groups))
        if name == f"{HEAD}.weight" and name not in self._where:
            name = f"{EMBEDDING}.weight"  # tied
        return self._where[name].read()

    def is_float16(self, name: str) -> bool:
        """Return whether float16 holds every value of a tensor that is not quantised."""
        name = name if name in self._where else f"{EMBEDDING}.weight"
        if self._where[name].entry.dtype == "F16":
            return True
        return all(torch.equal(rows.half().float(), rows.float()) for rows in self._where[name].read().split(4096))

    def stored(self, linear: Linear) -> Stored:
        """Read the codes and the grid of one linear; raises as `tensor`."""
        try:
            return self.form.stored(linear.grid, linear.shape, _read(linear.tensors))
        except PythiaExportError as e:
            raise type(e)(f"{self.pulled.folder}: {linear.name}: {e}", hint=e.hint) from e


def open_imported(pulled: Pulled, requantize: Bits | None = None, progress: Progress = SILENT) -> Imported:
    """Recognise the format, read the headers, hold every tensor to the configuration, and see how each linear fits.

    Linears whose grid does not fit are to be rounded again, to `requantize` bits.

    Raises:
        SourceError: a method or a variant that is not known or does not fit, a linear that does not fit without
            `requantize`, weights that are not quantised, a tensor that is missing.
        IntegrityError: tensors that contradict the configuration, or config.json.
    """
    where = str(pulled.folder)
    config, generation = read_model(pulled.folder, quantised=True)
    settings, source = _settings(pulled.folder)
    form = _format(settings, source)
    found = stored_tensors(pulled)
    settle_tied_head(config, found, pulled.folder)
    kept: dict[str, StoredTensor] = {}
    linears: dict[str, Linear] = {}
    for spec in tensors(replace(config, tied_head=config.tied_head and f"{HEAD}.qweight" not in found)):
        name = spec.name.removesuffix(".weight")
        if spec.role in ("linear", "head"):
            own = {key.rpartition(".")[2]: stored for key, stored in found.items() if key.rpartition(".")[0] == name}
            own.pop("bias", None)
            grid = form.grid(name, own)
            if grid is not None:
                shape = (spec.shape[0], spec.shape[1])
                linears[name] = _linear(form, name, shape, grid, own, where, requantize)
                for key in own:
                    del found[f"{name}.{key}"]
                continue
        if spec.name not in found:
            raise SourceError(f"{where}: tensor {spec.name} is missing", hint=_COPY)
        kept[spec.name] = held(found.pop(spec.name), spec)
    _require_nothing_else(found, where)
    if not linears:
        raise SourceError(f"{where}: {form.name} by {source}, and no linear is quantised", hint=_PLAIN)
    misfits = [linear for linear in linears.values() if linear.rounded]
    if misfits:
        progress.note(f"{len(misfits)} linears are rounded again to {requantize} bits, {misfits[0].name} first")
    return Imported(pulled, config, generation, dtype_of(kept.values()), kept, form, settings, linears)


_COPY = "Copy the checkpoint again, with all of its files, or save it again with the tool that quantised it."
_MISSING = {
    "g_idx": "desc_act = true says that columns are in another order, and g_idx which. Save the checkpoint again with "
    "it; if the columns are in their order, set desc_act to false."
}
_PLAIN = "`pythia-export run` quantises weights that are plain floats."


def _settings(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration of the quantisation and where it is from."""
    config = read_object(folder / CONFIG)
    key = next((key for key in ("quantization_config", "compression_config") if config.get(key) is not None), "")
    found, where = config.get(key), f"{folder / CONFIG}: {key}"
    if found is None and (folder / QUANTIZE_CONFIG).is_file():
        found = read_object(folder / QUANTIZE_CONFIG)
        return {"quant_method": "gptq"} | found, str(folder / QUANTIZE_CONFIG)
    if found is None:
        raise SourceError(f"{folder}: no quantization_config: this checkpoint is not quantised", hint=_PLAIN)
    if not isinstance(found, dict):
        raise IntegrityError(f"{where} is {shown(found)}; an object was expected", hint=SAVE_AGAIN)
    if "quant_method" not in found and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return {"quant_method": "bitsandbytes"} | found, where  # older files do not name it
    return found, where


def _format(settings: dict[str, Any], where: str) -> Format:
    method = settings.get("quant_method")
    if isinstance(method, str) and method in _READ:
        return _READ[method](settings, where)
    known = ", ".join(_READ)
    if isinstance(method, str) and method in _OTHER:
        raise SourceError(f"{where}: {method} does not fit: {_OTHER[method]}", hint=_DEQUANTISE)
    raise SourceError(
        f"{where}: quant_method is {shown(method)}, which is not known; {known} are",
        hint=_DEQUANTISE,
    )


def _linear(
    form: Format,
    name: str,
    shape: tuple[int, int],
    grid: Grid,
    own: Mapping[str, StoredTensor],
    where: str,
    requantize: Bits | None,
) -> Linear:
    """Hold the tensors of one linear to its grid, and see whether it fits."""
    parts = form.parts(grid, shape)
    for key, part in parts.items():
        if key not in own and part.needed:
            raise SourceError(
                f"{where}: tensor {name}.{key} is missing; {form.name} of {grid} has it", hint=_MISSING.get(key, MATCH)
            )
    for key, stored in own.items():
        if key not in parts:
            raise IntegrityError(f"{where}: {name}.{key} has no place in {form.name} of {grid}", hint=MATCH)
        dtypes, wanted = parts[key].dtypes, list(parts[key].shape)
        if stored.entry.dtype not in dtypes or list(stored.shape) != wanted:
            raise IntegrityError(
                f"{stored.path}: {stored.name} is {stored.entry.dtype} {list(stored.shape)}; {form.name} of {grid} "
                f"makes it {' or '.join(dtypes)} {wanted}",
                hint=MATCH,
            )
    groups = form.groups(_read({key: own[key] for key in ORDER if key in own}))
    if groups is not None:
        groups = _in_range(groups, grid.groups(shape[1]), f"{where}: {name}")
    scheme = scheme_of(grid, shape[1], groups)
    if scheme is None and requantize is None:
        scattered = groups is not None and scheme_of(grid, shape[1], None) is not None
        why = "columns of a group are scattered over the row" if scattered else f"groups of {grid.group_size}"
        how = " (act-order without static groups)" if scattered else ""
        raise SourceError(
            f"{where}: {name} does not fit: {why}{how}; MatMulNBits has blocks of 16 to 256 columns that follow one "
            "another",
            hint="--requantize 8 rounds what does not fit again, and says what that cost. Or quantise it again "
            + ("with desc_act=False, or with static groups." if scattered else "in groups of 32 or 128."),
        )
    if scheme is None:
        assert requantize is not None
        return Linear(name, shape, grid, own, groups, nearest_scheme(grid, requantize), rounded=True)
    return Linear(name, shape, grid, own, groups, scheme, rounded=False)


def _in_range(groups: np.ndarray, count: int, where: str) -> np.ndarray:
    low, high = int(groups.min()), int(groups.max())
    if low < 0 or high >= count:
        raise IntegrityError(
            f"{where}: a column is of group {low if low < 0 else high}; groups 0 to {count - 1} were expected",
            hint=MATCH,
        )
    return groups.astype(np.int64)


def _require_nothing_else(found: Mapping[str, StoredTensor], where: str) -> None:
    extra = sorted(name for name in found if not name.endswith(IGNORED_BUFFERS) and not _is_no_bias(name, found[name]))
    if extra:
        raise IntegrityError(f"{where}: tensors that have no place, {len(extra)}: {extra[0]} first", hint=MATCH)


def _is_no_bias(name: str, stored: StoredTensor) -> bool:
    """Some tools write a bias of zeros for a head that has none."""
    return name == f"{HEAD}.bias" and stored.entry.dtype in DTYPES and not bool(stored.read().any())


def _read(tensors: Mapping[str, StoredTensor]) -> Arrays:
    return dict(_arrays(tensors))


def _arrays(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, np.ndarray]]:
    for key, stored in tensors.items():
        yield key, stored.read().float().numpy() if stored.entry.dtype in DTYPES else stored.integers()
