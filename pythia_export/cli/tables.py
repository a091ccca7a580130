"""What the commands print for people: plans, artifacts, recipes and timings as rich tables. No I/O here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..bench.result import NoText
from ..report.words import imported_facts

if TYPE_CHECKING:
    from ..artifact import Artifact, Quantization
    from ..bench.result import Result
    from ..checkpoint import Checkpoint
    from ..commands.dequantize import Dequantized
    from ..commands.duration import Duration
    from ..commands.plan import Plan, PlannedLinear
    from ..commands.push import Push
    from ..corpus import Windows
    from ..evaluate.result import Evaluation
    from ..model.suite import Pythia
    from ..recipe import Recipe
    from ..records.quantization import LinearRecord

ROOMY = 116  # columns that everything of the list of models takes


def plan_view(plan: Plan) -> RenderableType:
    facts = _facts(
        {
            "Model": f"{plan.model} at {plan.revision}",
            "Geometry": ", ".join(f"{name} {_number(value)}" for name, value in plan.geometry.items()),
            "Download": _download(plan),
            "Memory": f"about {decimal(plan.peak_memory_bytes)} at most",
            **({} if plan.time is None else {"Time": _time(plan.time)}),
            "KV cache": f"{decimal(plan.kv_cache_bytes)} for {_number(plan.geometry['context'])} tokens",
            "Linears": f"{plan.bits_per_weight:.2f} bits a weight, scales included",
        }
    )
    files = new_table("Artifact", "File", ">Size")
    for name, size in plan.files.items():
        files.add_row(name, decimal(size))
    if len(plan.files) > 1:
        files.add_section()
        files.add_row("in all", decimal(sum(plan.files.values())))
    steps = Text("\n".join(f"{n}. {step}" for n, step in enumerate(plan.steps, 1)))
    return Group(facts, "", files, "", linears_table(plan.linears), "", steps, *_warned(plan.warnings))


def _download(plan: Plan) -> str:
    if plan.download_bytes is None:
        return "nothing"
    whole = f"about {decimal(plan.download_bytes)}"
    if plan.revisions == 1:
        return whole
    each = decimal(plan.download_bytes // plan.revisions)
    return f"{whole}: {plan.revisions} checkpoints of {each}, which the disk holds together"


def linears_table(linears: Iterable[PlannedLinear]) -> Table:
    """One row a treatment: linears of equal kind, shape and scheme are counted, not listed."""
    kinds = Counter(
        (_kind(x.name), x.shape, x.method, x.bits, x.group_size) for x in linears
    )  # a Counter keeps the order of first sight: that of the model
    table = new_table("Linears", "Linear", ">Count", ">Shape", "Method", ">Bits", ">Group")
    for (kind, shape, method, bits, group_size), n in kinds.items():
        stored = ("none", "", "") if method == "none" else (method, str(bits), _group(group_size))
        table.add_row(kind, str(n), " x ".join(map(str, shape)), *stored)
    return table


def artifact_view(
    artifact: Artifact, quantization: Quantization | None, speed: tuple[str, str], warnings: Iterable[str]
) -> RenderableType:
    """Provenance, files and the quantisation's summary. That the hashes hold is for the caller to have checked.

    `speed` is what the graph runs at here, and why.
    """
    manifest, recipe = artifact.manifest, artifact.recipe
    source, calibration, q = manifest.source, manifest.calibration, recipe.quantize
    facts = {
        "Artifact": f"{artifact.folder}, made {manifest.created}",
        "Source": f"{source.name} at {source.revision}",
        "Commit": source.commit,
        **imported_facts(manifest),
        "Recipe": f"{q.method}, {q.bits} bits, group {_group(q.group_size)}; for {recipe.export.target}, "
        f"rotary {recipe.export.rotary}, accuracy level {recipe.export.accuracy_level}, {recipe.export.dtype}, "
        f"KV cache of {recipe.export.cache_dtype}",
        "Speed here": f"{speed[0]} ({speed[1]})",
        "Calibration": f"{calibration.windows} x {calibration.sequence_length} tokens, {calibration.source}"
        if calibration
        else "none",
        "Made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    files = new_table("Files, each as its SHA-256 says", "File", ">Size", "SHA-256")
    for name, entry in manifest.files.items():
        files.add_row(name, decimal(entry.size), entry.sha256[:16])
    files.add_section()
    files.add_row("in all", decimal(sum(entry.size for entry in manifest.files.values())), "")
    parts: list[RenderableType] = [_facts(facts), "", files]
    if quantization is not None:
        parts += ["", losses_table(quantization)]
    return Group(*parts, *_warned(warnings))


def _warned(warnings: Iterable[str]) -> list[RenderableType]:
    return [part for warning in warnings for part in ("", f"Warning: {warning}")]


def losses_table(quantization: Quantization) -> Table:
    """Output error of each kind of linear, the mean and the worst over the layers, beside round-to-nearest's."""
    kinds: dict[str, list[LinearRecord]] = {}
    for linear in quantization.linears:
        if linear.loss is not None:
            kinds.setdefault(_kind(linear.name), []).append(linear)
    title = f"Quantised by {quantization.method}, {quantization.bits_per_weight:.2f} bits a weight"
    table = new_table(title, "Linear", ">Count", ">Loss", ">Worst", ">RTN's", ">Recovered")
    for kind, linears in kinds.items():
        losses = [x.loss for x in linears if x.loss is not None]
        rtn = [x.rtn_loss for x in linears if x.rtn_loss is not None]
        recovered = [x.recovered for x in linears if x.recovered is not None]
        table.add_row(
            kind,
            str(len(linears)),
            f"{_mean(losses):.2e}",
            f"{max(losses):.2e}",
            f"{_mean(rtn):.2e}" if rtn else "",
            f"{_mean(recovered):.0%}" if recovered else "",
        )
    return table


def recipes_table(shipped: Iterable[tuple[str, str, Recipe]]) -> Table:
    """Name, when to choose it, and the recipe itself."""
    table = new_table("", "Recipe", "Weights", "Target", "When")
    for name, about, recipe in shipped:
        q = recipe.quantize
        weights = "float" if q.method == "none" else f"{q.method} int{q.bits} g{_group(q.group_size)}"
        table.add_row(name, weights, recipe.export.target, about)
    return table


def checkpoint_line(written: Dequantized) -> str:
    n = len(written.weights)
    size = f"{decimal(written.nbytes)} as {written.dtype} in {n} file{'s' if n > 1 else ''}"
    return f"Checkpoint  {written.folder} ({written.parameters:,} parameters, {size}; {written.seconds:.1f} s)"


def push_view(push: Push) -> RenderableType:
    title = f"To {push.repo}" + ("" if push.url else ", not yet sent")
    table = new_table(title, "File", ">Size")
    for name, size in push.files.items():
        table.add_row(name, decimal(size))
    table.add_section()
    table.add_row("in all", decimal(sum(push.files.values())))
    return Group(table, *(["", f"Commit  {push.url}"] if push.url else []))


def bench_view(result: Result) -> Group:
    """Two tables, so that both fit 80 columns: how fast, and at what cost. Then who is not in them, and why."""
    contexts = result.contexts
    speed = new_table(
        f"{result.machine}; tokens a second", "", f">Prefill\nof {result.prompt_tokens:,}",
        *(f">Decode\nat {n:,}" for n in contexts),
    )  # fmt: skip
    cost = new_table("", "", ">Load", ">First token", ">Memory", ">Size", ">Perplexity")
    for row in result.rows:
        of = row.medians
        rates = [of.prefill_tokens_per_second, *(of.decode_tokens_per_second[str(n)] for n in contexts)]
        speed.add_row(row.name, *(f"{x:,.1f}" if x < 100 else f"{x:,.0f}" for x in rates))
        cost.add_row(
            row.name,
            f"{of.load_seconds:.2f} s",
            f"{of.first_token_seconds:.2f} s",
            decimal(of.peak_memory_bytes),
            decimal(of.size_bytes),
            "" if of.perplexity is None else f"{of.perplexity:,.3f}",
        )
    text, notes = result.text, []
    if result.speed != "native":
        notes.append(f"{result.speed} speed: {result.why}")
    notes.append(
        f"Perplexity: not measured, {text.why}" if isinstance(text, NoText)
        else f"Perplexity of {text.tokens:,} held-out tokens in {text.windows:,} windows: {text.source}"
    )  # fmt: skip
    reasons: dict[str, list[str]] = {}
    for peer in result.absent:
        reasons.setdefault(peer.why, []).append(peer.name)
    notes += [f"Not measured: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return Group(speed, "", cost, "", *(Text(note, style="dim") for note in notes))


def eval_table(result: Evaluation) -> Group:
    """A row a task and metric; the published figure and the difference from it, where there is one."""
    source, known = result.source, any(row.published for row in result.rows)
    title = f"{source.name} at {source.revision}"
    columns = ["Task", "Metric", ">Samples", ">Artifact", ">± error"]
    table = new_table(title, *columns, *((">Published", ">± error", ">Difference") if known else ()))
    previous = None
    for row in result.rows:
        metric = row.metric + ("" if row.higher_is_better is None else " ↑" if row.higher_is_better else " ↓")
        if row.filter != "none":
            metric += f" ({row.filter})"
        there = row.published
        cells = [f"{row.samples:,}" if row.samples else "", *_figure(row.value, row.stderr)]
        if there:
            apart = "" if row.value is None or there.value is None else f"{row.value - there.value:+.4g}"
            cells += [*_figure(there.value, there.stderr), apart]
        table.add_row(row.task if row.task != previous else "", metric, *cells)
        previous = row.task
    said = f"lm-evaluation-harness {result.versions.get('lm_eval', '')}, {result.seconds:,.1f} s, "
    said += f"{result.speed} speed"
    if result.limit:
        said += f"; only the first {result.limit:,} samples of each task: not comparable with published figures"
    if known:
        said += "\nPublished: EleutherAI/pythia, evals/pythia-v1, zero-shot, half precision, the harness of 2023"
    return Group(table, Text(said, style="dim"))


def checkpoint_view(checkpoint: Checkpoint, texts: Mapping[str, Windows]) -> RenderableType:
    """What was pulled, and what was seen of it; `texts` by the section that asks for them."""
    pulled, record = checkpoint.pulled, checkpoint.pulled.record
    compared, same = record.compared_revisions, record.same_weights_as
    form = "pickles, converted to safetensors" if record.format == "pickle" else "safetensors"
    files = "1 file" if len(pulled.weights) == 1 else f"{len(pulled.weights)} shards"
    nbytes = sum(path.stat().st_size for path in pulled.weights)
    other = record.tokenizer
    facts = {
        "Model": f"{pulled.name} at {pulled.revision}",
        "Commit": pulled.commit,
        "Weights": f"{checkpoint.parameters:,} parameters, {checkpoint.dtype}, {decimal(nbytes)} in {files} ({form})",
        "Tokenizer": f"that of {other.revision}" if other else "",
        "Compared": f"with {compared} other revisions: {', '.join(same) + ' the same' if same else 'none the same'}"
        if compared
        else "",
    }
    for section, text in texts.items():
        count, length = text.ids.shape
        facts[section.capitalize()] = f"{count:,} x {length:,} tokens, {text.source} (sha256 {text.sha256[:12]})"
    return _facts({name: value for name, value in facts.items() if value})


def models_table(models: Iterable[Pythia], width: int) -> RenderableType:
    """One row a model; seeds of one model share a row. What is wrong with revisions stands below. Of what follows from
    the rest as much is shown as `width` columns hold."""
    listed = list(models)
    columns = ["Model", ">Parameters", ">Layers", ">Hidden", ">Heads", ">Steps"]
    if roomy := width >= ROOMY:
        columns[2:2] = [">Non-embedding"]
        columns[-1:] = [">Vocabulary", ">float16", ">Steps"]
    table = new_table("", *columns)
    family = None
    for name, model in _seeds_together(listed):
        if family not in (None, model.family):
            table.add_section()
            table.add_row("")
        family, c = model.family, model.config
        cells = [f"{n:,}" for n in (c.parameters, c.num_layers, c.hidden_size, c.num_heads)]
        if roomy:
            cells[1:1] = [f"{model.non_embedding_parameters:,}"]
            cells += [f"{c.vocab_size:,}", decimal(2 * c.parameters)]
        table.add_row(name, *cells, str(len(model.revisions)) if model.revisions else "?")
    lines = [
        f"{model.name}: {steps_shortened(p.revisions)}{p.reported}"
        for model in listed for p in model.problems if p.kind != "note" or len(listed) <= 4
    ]  # fmt: skip
    return Group(table, *_known_problems(lines))


def _seeds_together(models: list[Pythia]) -> Iterable[tuple[str, Pythia]]:
    """`pythia-14m-seed1 ... 9` for models that follow one another and differ in their seed alone."""
    groups: dict[str, list[Pythia]] = {}
    for model in models:
        groups.setdefault(re.sub(r"(?<=seed)\d+$", "", model.name), []).append(model)
    for together in groups.values():
        last = "" if len(together) == 1 else f" ... {re.sub(r'.*seed', '', together[-1].name)}"
        yield together[0].name + last, together[0]


def model_view(model: Pythia, revision: str | None = None) -> RenderableType:
    c = model.config
    steps = (
        "not established"
        if not model.revisions
        else f"main and {len(model.revisions)}: {steps_shortened(model.revisions)}"
    )
    facts = {
        "Model": model.id + (f" at {revision}" if revision else ""),
        "Family": f"{model.family}, trained on the Pile" + (" without its duplicates" * (model.data == "deduped")),
        "Called": f"{model.formerly} until January 2023" if model.formerly else "",
        "Parameters": f"{c.parameters:,}, of which {model.non_embedding_parameters:,} outside embedding and head",
        "Geometry": f"{c.num_layers} layers, hidden {c.hidden_size}, {c.num_heads} heads of {c.head_dim}, "
        f"{c.rotary_dim} of them rotary, feed-forward {c.intermediate_size}",
        "Vocabulary": f"{c.vocab_size:,}, padded from the tokenizer's 50,277",
        "Trained in": f"{model.trained_in}; as float16 its weights are {decimal(2 * c.parameters)}",
        "Revisions": steps.removesuffix(": "),
        "Trained on": model.training_order or "",
    }
    lines = [
        f"{steps_shortened(p.revisions)}{p.reported}" for p in model.problems
        if revision is None or not p.revisions or revision in p.revisions
    ]  # fmt: skip
    return Group(_facts({name: value for name, value in facts.items() if value}), *_known_problems(lines))


def _known_problems(lines: list[str]) -> list[RenderableType]:
    title = [Text("\nKnown problems:", style="yellow")] if lines else []
    return [*title, *(Padding(Text(line, style="yellow"), (0, 0, 0, 2), expand=False) for line in lines)]


def steps_shortened(revisions: tuple[str, ...]) -> str:
    """`step1000 ... step53000, step55000, main: ` of revisions in their order; runs of the thousands are shortened."""
    numbers = [int(r.removeprefix("step")) for r in revisions if r.startswith("step")]
    runs: list[list[int]] = []
    for n in numbers:
        follows = runs and n == max(runs[-1][-1] + 1000 if runs[-1][-1] >= 1000 else 2 * runs[-1][-1], 1)
        if follows:
            runs[-1].append(n)
        else:
            runs.append([n])
    spelt = [f"step{r[0]}" if len(r) == 1 else f"step{r[0]} {'...' if len(r) > 2 else 'and'} step{r[-1]}" for r in runs]
    spelt += [r for r in revisions if not r.startswith("step")]  # `main`
    return ", ".join(spelt) + ": " if spelt else ""


def _figure(value: float | None, stderr: float | None) -> tuple[str, str]:
    return "–" if value is None else f"{value:.4g}", "" if stderr is None else f"{stderr:.2g}"


def new_table(title: str, *columns: str) -> Table:
    """A `>` before a column's name aligns it to the right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        side: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        table.add_column(name.removeprefix(">"), justify=side, overflow="fold")  # a figure that is cut is another one
    return table


def _facts(facts: Mapping[str, str]) -> Padding:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")  # a hash is longer than a narrow terminal
    for name, value in facts.items():
        grid.add_row(Text(name, style="bold"), Text(value))
    return Padding(grid, 0, expand=False)


def _kind(name: str) -> str:
    """``gpt_neox.layers.3.mlp.dense_h_to_4h`` is ``mlp.dense_h_to_4h``: the same linear of every layer."""
    return name.split(".", 3)[3] if name.startswith("gpt_neox.layers.") else name


def _group(group_size: int) -> str:
    return "row" if group_size == -1 else str(group_size)


def _time(time: Duration) -> str:
    return (
        f"about {_about(time.seconds)} here, without downloads: {_about(time.quantize)} to quantise, "
        f"{_about(time.prove)} to prove (measured just now: {time.rates.products / 1e9:,.0f} GFLOP/s, "
        f"{time.rates.choices / 1e6:,.0f} million roundings/s)"
    )


def _about(seconds: float) -> str:
    """Two digits at most: an estimate has no more."""
    if seconds < 90:
        return f"{max(1, float(f'{seconds:.1g}')):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.{0 if seconds > 36000 else 1}f} h"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
