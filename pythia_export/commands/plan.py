"""What a recipe will do: sizes, memory, time here, steps, what cannot come to anything."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.errors import SourceError
from ..calibrate import require_budget
from ..checkpoint import open_checkpoint
from ..checkpoint import pull as pull_checkpoint
from ..corpus.find import find_files
from ..graph.cache_scales import unit_scales
from ..graph.targets import require_fit, warnings
from ..graph.trunk import build_graph
from ..model.mean import is_mean, terms
from ..model.neox import NeoXConfig, cache_bytes
from ..model.suite import find, geometry
from ..proof.autoencoder import Autoencoder, autoencoders
from ..recipe import Gates, Recipe, Verify
from ..weights.layout import layout_of, require_overrides_match
from ..weights.names import MODEL, data_name, graph_name
from .cache_scales import WINDOWS
from .duration import Duration, duration, measured
from .footprint import peak_memory


@dataclass(frozen=True)
class PlannedLinear:
    """How one linear will be stored; `shape` is [out, in]."""

    name: str
    method: str
    bits: int
    group_size: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What a recipe will do, from its text and the catalogue alone. `revisions` are read: several for a mean."""

    model: str
    revision: str
    geometry: dict[str, int | float]
    files: dict[str, int]
    download_bytes: int | None
    revisions: int
    peak_memory_bytes: int
    kv_cache_bytes: int
    time: Duration | None
    linears: list[PlannedLinear]
    bits_per_weight: float
    steps: list[str]
    warnings: list[str]


def plan(recipe: Recipe, *, timed: bool = False) -> Plan:
    """Return sizes and memory; nothing is fetched. If `timed`, also the time here, by a probe of half a second.

    A hub model must be in the catalogue, a local one needs its config.json.

    Raises:
        SourceError: the model's geometry cannot be known without pulling it, or a local text is not there.
        And as `autoencoders`, of those that the recipe names.
    """
    source = _source(recipe)
    config, bytes_to_fetch = source.config, 2 * source.config.parameters * source.revisions
    settled, notes = recipe.quantize.settled(
        source.dtype, config.parallel_residual, recipe.export.dtype, recipe.export.reads_three_bits
    )
    recipe = recipe.model_copy(update={"quantize": settled})
    places = layout_of(recipe, config)
    require_fit(config, places, recipe.export)
    require_overrides_match(config, recipe.quantize)
    if recipe.quantize.bits_per_weight is not None:
        require_budget(config, recipe.quantize, recipe.export.dtype)
    looked = _autoencoders(recipe, config)
    several = f": {source.revisions} checkpoints, averaged tensor by tensor" if source.revisions > 1 else ""
    steps = [f"pull {recipe.model.name} at {recipe.model.revision}{several}"]
    calibration = recipe.calibration if recipe.calibrates else None
    for text in (calibration, recipe.verify):
        if text is not None and text.source == "file":
            find_files(text)
    if calibration is not None and recipe.uses_gptq:
        steps.append(
            f"calibrate on {calibration.samples} x {calibration.sequence_length} tokens ({calibration.described})"
        )
    if recipe.quantize.bits_per_weight is not None:
        steps.append(f"choose the linears that get 8 bits, {recipe.quantize.bits_per_weight} bits a weight in all")
    steps.append(f"quantise {len(places.linears)} linears, one layer at a time")
    if calibration is not None and recipe.export.static_scales:
        windows = min(WINDOWS, calibration.samples)
        steps.append(f"measure the scales of the KV cache on {windows} x {calibration.sequence_length} tokens")
    steps += [
        f"write {MODEL} ({recipe.export.target}, rotary {recipe.export.rotary})",
        f"prove on {recipe.verify.tokens:,} held-out tokens ({recipe.verify.described}); {_gates(recipe.verify.gates)}",
    ]
    scales = unit_scales(config) if recipe.export.static_scales else None
    if recipe.verify.look_inside:
        steps.append(f"look inside: streams, patterns, heads{f', {len(looked)} autoencoders' if looked else ''}")
    return Plan(
        model=recipe.model.name,
        revision=recipe.model.revision,
        geometry={
            "parameters": config.parameters,
            "layers": config.num_layers,
            "hidden": config.hidden_size,
            "heads": config.num_heads,
            "head_dim": config.head_dim,
            "rotary_dim": config.rotary_dim,
            "vocab": config.vocab_size,
            "context": config.max_positions,
        },
        files=_files(recipe, build_graph(config, places, recipe.export, scales).ByteSize(), places.nbytes),
        download_bytes=bytes_to_fetch if recipe.model.id not in (None, "demo") else None,
        revisions=source.revisions,
        peak_memory_bytes=peak_memory(config, recipe, looked),
        kv_cache_bytes=cache_bytes(
            config, recipe.export.cache_dtype, config.max_positions, recipe.export.static_scales
        ),
        time=duration(config, recipe, measured(config, recipe.quantize), _weights(looked)) if timed else None,
        linears=[
            PlannedLinear(p.name, p.method, p.scheme.bits, p.scheme.group_size, p.shape)
            for p in places.linears.values()
        ],
        bits_per_weight=places.bits_per_weight,
        steps=steps,
        warnings=[*notes, *warnings(places, recipe.export), *_hopeless(recipe.verify)],
    )


def _autoencoders(recipe: Recipe, config: NeoXConfig) -> tuple[Autoencoder, ...]:
    """Open the recipe's, by their headers alone."""
    sae = recipe.verify.sae
    return () if sae is None else autoencoders(sae, config, recipe.quantize.products, weights=False)


def _weights(looked: tuple[Autoencoder, ...]) -> int:
    return sum(one.d_in * one.d_sae for one in looked)


def _gates(gates: Gates) -> str:
    """Name the gates; a recipe may have none of what quantisation costs, and then a pass says little."""
    given = gates.model_dump(exclude_none=True)
    costs = "ppl_ratio", "delta_nll", "kld_mean", "same_top"
    named = f"gates: {', '.join(given)}" if given else "no gates"
    return named if given.keys() & set(costs) else f"{named}; none limits what quantisation costs"


def _hopeless(verify: Verify) -> list[str]:
    """Gates that no measurement can pass."""
    least = verify.gates.min_tokens
    if least is None or least <= verify.tokens:
        return []
    return [f"verify.gates.min_tokens is {least:,}, verify.tokens {verify.tokens:,}: the gate cannot pass."]


def _files(recipe: Recipe, graph: int, weights: int) -> dict[str, int]:
    """Bytes of the large files, by the names that they will have."""
    second = graph_name(recipe)
    return {MODEL: graph} | ({second: graph} if second is not None else {}) | {data_name(recipe): weights}


@dataclass(frozen=True)
class _Source:
    """What is known of the weights before any is read; of the suite's, what most of them are."""

    config: NeoXConfig
    revisions: int
    dtype: str


def _source(recipe: Recipe) -> _Source:
    model = recipe.model
    if model.id in (None, "demo"):
        checkpoint = open_checkpoint(pull_checkpoint(model))
        return _Source(checkpoint.config, max(1, len(checkpoint.pulled.averaged)), checkpoint.dtype)
    config = geometry(model.id)
    if config is None:
        raise SourceError(
            f"{model.id} is not in the catalogue, so its size is not known before it is pulled",
            hint="`pythia-export pull RECIPE` fetches it.",
        )
    if not is_mean(model.revision):
        return _Source(config, 1, "float16")
    pythia = find(model.id)
    return _Source(config, len(terms(model.revision, () if pythia is None else pythia.revisions)), "float32")
