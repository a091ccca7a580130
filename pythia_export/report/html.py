"""report.html: the whole proof on one page that needs nothing else, neither the network nor a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .. import __version__
from . import findings, ruler, words
from .depth import depth_panels, residual_panel
from .forest import divergence_forest, perplexity_forest
from .heads import head_maps
from .words import Json


def render_report(manifest: Json, quantization: Json, parity: Json) -> str:
    """One HTML page from the artifact's three records. `manifest` may be one that is not yet published (no `files`)."""
    linears = quantization["linears"]
    word, scope = words.verdict(parity)
    page = _templates().get_template("report.html.j2")
    return page.render(
        words=words,
        name=manifest["source"]["name"],
        source=manifest["source"],
        treatment=words.treatment(quantization),
        verdict=word,
        scope=scope,
        questions=words.QUESTIONS,
        export_sentence=words.export_sentence(parity),
        cost_sentence=words.cost_sentence(parity, quantization["method"] != "none"),
        parity=parity,
        corpus=parity["corpus"],
        export=parity["export"],
        cost=parity["cost"],
        against=parity["against"],
        look=[line for line in (words.look_in_graph(parity), words.look_in_weights(parity)) if line],
        export_plot=_export_plot(parity),
        cost_plot=_cost_plot(parity),
        parts=_parts(parity),
        quantization=quantization,
        method=words.method_name(quantization["method"]),
        findings=findings,
        panels=depth_panels(linears),
        residual=residual_panel(quantization.get("layers") or []),
        heads=head_maps(linears),
        weighed=any(x.get("expected_cost") is not None for x in linears),
        raised=(quantization.get("allocation") or {}).get("raised") or (),
        bars=_recovered(linears),
        groups=list(_by_layer(quantization)),
        compared=any(x["loss"] is not None and x["method"] != "rtn" for x in linears),
        facts=_facts(manifest, parity),
        recipe=words.recipe_toml(manifest["recipe"]),
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


def _export_plot(parity: Json) -> Any:
    first, *rest = parity["export"]["runs"]
    judged = [
        ("99.9 % of logits", first["p999_abs"]),
        ("one pass", first["max_abs"]),
        ("cached, padded", first["decode_max_abs"]),
    ]
    others = [(run["name"].partition(",")[0], run["max_abs"]) for run in rest]
    limits = [gate["limit"] for gate in parity["gates"] if gate["name"] in ("export_max_abs", "decode_max_abs")]
    return ruler.ruler(judged, others, limits)


def _cost_plot(parity: Json) -> Any:
    ratio = parity["cost"]["ppl_ratio"]
    if ratio["value"] is None:
        return None
    limit = next((gate["limit"] for gate in parity["gates"] if gate["name"] == "ppl_ratio"), None)
    return ruler.interval_plot(ratio["value"], ratio["low"], ratio["high"], limit)


def _parts(parity: Json) -> list[tuple[str, Any]]:
    """Perplexity and divergence with error bars: of the whole text, and of its parts where documents name them."""
    cost, limits = parity["cost"], {gate["name"]: gate["limit"] for gate in parity["gates"]}
    plots = [
        ("Change of perplexity, with its 95 % interval", perplexity_forest(cost, limits.get("ppl_ratio"))),
        ("KL divergence from the original, nats a token", divergence_forest(cost, limits.get("kld_mean"))),
    ]
    return [(title, plot) for title, plot in plots if plot is not None]


def _recovered(linears: list[Json]) -> list[tuple[str, float]]:
    """Each kind of linear, and the share of round-to-nearest's error that the method took away."""
    kinds = words.by_kind([x for x in linears if x["method"] != "rtn"])
    return [(name, share) for name, rows in kinds.items() if (share := words.recovered(rows)) is not None]


def _by_layer(quantization: Json) -> Iterator[tuple[str, Mapping[str, Any] | None, list[Mapping[str, Any]]]]:
    """Title, what was recorded of the whole layer, its linears."""
    whole = {x["layer"]: x for x in quantization.get("layers") or ()}
    layers: dict[int | None, list[Mapping[str, Any]]] = {}
    for linear in quantization["linears"]:
        layers.setdefault(linear["layer"], []).append(linear)
    for layer, rows in layers.items():
        yield "Head" if layer is None else f"Layer {layer}", whole.get(layer), rows


def _facts(manifest: Json, parity: Json) -> list[tuple[str, str]]:
    """Provenance, a name and a value each; what an older or unpublished record lacks is left out."""
    source, corpus, calibration = manifest["source"], parity["corpus"], manifest.get("calibration")
    export = manifest["recipe"]["export"]
    versions = parity.get("versions") or manifest.get("versions") or {}
    facts = {
        "Source": f"{source['name']} at {source['revision']}",
        "Commit": source["commit"],
        "Graph": f"for {export['target']}, rotary {export['rotary']}, {export['dtype']}, "
        f"accuracy level {export['accuracy_level']}",
        "Held-out text": f"{corpus['source']}: {corpus['windows']:,} windows of {corpus['sequence_length']:,} tokens",
        "its SHA-256": corpus["sha256"],
    }
    if calibration:
        facts["Calibration text"] = (
            f"{calibration['source']}: {calibration['windows']:,} windows of {calibration['sequence_length']:,} tokens"
        )
        facts["SHA-256 of that"] = calibration["sha256"]
    facts["Proved"] = ", ".join(
        str(x) for x in (parity.get("created"), parity.get("machine"), f"{parity['seconds']:,.0f} s") if x
    )
    facts["Versions"] = ", ".join(f"{package} {version}" for package, version in versions.items())
    return [(name, value) for name, value in facts.items() if value]
