"""report.html: the whole proof on one page that needs nothing else, neither the network nor a script."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..base.version import __version__
from ..recipe import Recipe, parse_recipe
from ..records.manifest import Origin
from ..records.parity import Parity, Run
from ..records.quantization import LayerRecord, LinearRecord, Quantization
from . import findings, ruler, words
from .depth import depth_panels, residual_panel
from .forest import divergence_forest, perplexity_forest
from .heads import head_maps
from .inside import inside_plots


def render_report(origin: Origin, quantization: Quantization, parity: Parity) -> str:
    """Return one HTML page from an artifact's three records; `origin` is its manifest, published or not."""
    linears, recipe = quantization.linears, parse_recipe(origin.recipe)
    word, scope = words.verdict(parity)
    page = _templates().get_template("report.html.j2")
    return page.render(
        words=words,
        name=origin.source.name,
        source=origin.source,
        treatment=words.treatment(quantization),
        verdict=word,
        scope=scope,
        questions=words.questions(parity),
        export_sentence=words.export_sentence(parity),
        cost_sentence=words.cost_sentence(parity, quantization.method != "none"),
        parity=parity,
        corpus=parity.corpus,
        export=parity.export,
        cost=parity.cost,
        against=parity.against,
        inside=inside_plots(parity.inside),
        inside_sentence=words.inside_sentence(parity),
        look=[line for line in (words.look_in_graph(parity), words.look_in_weights(parity)) if line],
        export_plot=_export_plot(parity),
        export_legend=_export_legend(parity),
        cost_plot=_cost_plot(parity),
        parts=_parts(parity),
        quantization=quantization,
        method=words.method_name(quantization.method),
        findings=findings,
        panels=depth_panels(linears),
        residual=residual_panel(quantization.layers),
        heads=head_maps(linears),
        weighed=any(x.expected_cost is not None for x in linears),
        raised=() if quantization.allocation is None else quantization.allocation.raised,
        bars=_recovered(linears),
        groups=list(_by_layer(quantization)),
        compared=any(x.loss is not None and x.method != "rtn" for x in linears),
        facts=_facts(origin, recipe, parity),
        recipe=words.recipe_toml(recipe.model_dump(mode="json")),
        program=f"pythia-export {__version__}",
    )


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a name misspelt in the template is an error, not a blank
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _export_plot(parity: Parity) -> Any:
    runs = parity.export.runs
    first, cached = _deciding(parity)
    judged = [
        ("99.9 % of logits", first.p999_abs),
        ("one pass", first.max_abs),
        ("cached, padded", cached.decode_max_abs),
    ]
    others = [(run.name.partition(",")[0], run.max_abs) for run in runs if run is not first]
    limits = [gate.limit for gate in parity.gates if gate.name in ("export_max_abs", "decode_max_abs")]
    return ruler.ruler(judged, others, limits)


def _deciding(parity: Parity) -> tuple[Run, Run]:
    """Return the gated runs that differ most: in one pass, and over the cache, batched or padded."""
    gated = [run for run in parity.export.runs if run.gated]
    return max(gated, key=lambda run: run.max_abs), max(gated, key=lambda run: run.decode_max_abs)


def _export_legend(parity: Parity) -> list[tuple[str, str]]:
    """Return the look of each kind of dot, and what it stands for."""
    first, cached = _deciding(parity)
    what = f"“{first.name}”" if first is cached else f"“{first.name}”; cached or padded “{cached.name}”"
    told = [("got", f"the run that decides the gates: {what}")]
    if len(parity.export.runs) > 1:
        told.append(("other", "the other runs, in one pass"))
    return told


def _cost_plot(parity: Parity) -> Any:
    ratio = parity.cost.ppl_ratio
    if ratio.value is None:
        return None
    limit = next((gate.limit for gate in parity.gates if gate.name == "ppl_ratio"), None)
    return ruler.interval_plot(ratio.value, ratio.low, ratio.high, limit)


def _parts(parity: Parity) -> list[tuple[str, Any]]:
    """Perplexity and divergence with error bars: of the whole text, and of its parts where documents name them."""
    cost, limits = parity.cost, {gate.name: gate.limit for gate in parity.gates}
    plots = [
        ("Change of perplexity, with its 95 % interval", perplexity_forest(cost, limits.get("ppl_ratio"))),
        ("KL divergence from the original, nats a token", divergence_forest(cost, limits.get("kld_mean"))),
    ]
    return [(title, plot) for title, plot in plots if plot is not None]


def _recovered(linears: list[LinearRecord]) -> list[tuple[str, float]]:
    """Each kind of linear, and the share of round-to-nearest's error that the method took away."""
    kinds = words.by_kind([x for x in linears if x.method != "rtn"])
    return [(name, share) for name, rows in kinds.items() if (share := words.recovered(rows)) is not None]


def _by_layer(quantization: Quantization) -> Iterator[tuple[str, LayerRecord | None, list[LinearRecord]]]:
    """Title, what was recorded of the whole layer, its linears."""
    whole = {x.layer: x for x in quantization.layers}
    layers: dict[int | None, list[LinearRecord]] = {}
    for linear in quantization.linears:
        layers.setdefault(linear.layer, []).append(linear)
    for layer, rows in layers.items():
        if layer is None:
            yield "Head", None, rows
        else:
            yield f"Layer {layer}", whole.get(layer), rows


def _facts(origin: Origin, recipe: Recipe, parity: Parity) -> list[tuple[str, str]]:
    """Provenance, a name and a value each."""
    source, corpus, calibration, export = origin.source, parity.corpus, origin.calibration, recipe.export
    facts = {
        "Source": f"{source.name} at {source.revision}",
        "Commit": source.commit,
        **words.imported_facts(origin),
        "Graph": f"for {export.target}, rotary {export.rotary}, {export.dtype}, accuracy level {export.accuracy_level}",
        "Held-out text": f"{corpus.source}: {corpus.windows:,} windows of {corpus.sequence_length:,} tokens",
        "its SHA-256": corpus.sha256,
    }
    if calibration:
        facts["Calibration text"] = (
            f"{calibration.source}: {calibration.windows:,} windows of {calibration.sequence_length:,} tokens"
        )
        facts["SHA-256 of that"] = calibration.sha256
    facts["Proved"] = ", ".join(str(x) for x in (parity.created, parity.machine, f"{parity.seconds:,.0f} s") if x)
    facts["Versions"] = ", ".join(f"{package} {version}" for package, version in parity.versions.items())
    return [(name, value) for name, value in facts.items() if value]
