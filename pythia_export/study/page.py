"""report.html: what a sweep found, on one page that needs neither network nor script; its plots beside it as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..base.errors import EnvironmentProblem
from ..base.extras import install
from ..base.version import __version__
from ..disk import write_atomically
from ..report import words
from .rows import Rows

PAGE, PLOTS = "report.html", "plots"
MOST_FITS, MOST_ROWS, MOST_LISTED = 6, 8, 60
ROOMS = (Path(__file__).parent, Path(__file__).parent.parent / "report")  # the second for the style that pages share


class LeftOut(Protocol):
    """Checkpoints that a sweep does not ask for."""

    @property
    def name(self) -> str: ...
    @property
    def revisions(self) -> Sequence[str]: ...
    @property
    def why(self) -> str: ...


def write(
    results: pa.Table,
    subsets: pa.Table,
    folder: Path,
    *,
    title: str,
    left_out: Sequence[LeftOut],
    failed: int,
    outstanding: int,
    means: pa.Table | None = None,
) -> list[Path]:
    """`folder/report.html` and `folder/plots/*.svg`, each whole or not at all; the same bytes for the same tables.

    failed, outstanding: jobs. means: each mean of checkpoints beside the last one, of `sweep.pairs`.

    Raises:
        EnvironmentProblem: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise EnvironmentProblem(
            "the plots are drawn by matplotlib, which is not installed", hint=install("sweep")
        ) from e
    page, plots = render(
        results, subsets, title=title, left_out=left_out, failed=failed, outstanding=outstanding, means=means
    )
    (folder / PLOTS).mkdir(parents=True, exist_ok=True)
    written = []
    for slug, svg in plots.items():
        path = folder / PLOTS / f"{slug}.svg"
        write_atomically(path, f"{svg}\n".encode())
        written.append(path)
    for stale in set((folder / PLOTS).glob("*.svg")) - set(written):
        stale.unlink()
    write_atomically(folder / PAGE, page.encode())
    return [folder / PAGE, *written]


def render(
    results: pa.Table,
    subsets: pa.Table,
    *,
    title: str,
    left_out: Sequence[LeftOut],
    failed: int,
    outstanding: int,
    means: pa.Table | None = None,
) -> tuple[str, dict[str, str]]:
    """The page, and its plots by their slugs."""
    from . import averages, figures, induction, plots, statement, survival
    from .law import LAW, PUBLISHED, Compared, Fit, compare, fit

    rows = Rows.of(results)
    settings = _settings(rows)
    fits = {name: fit(rows.where(rows["setting"] == name)) for name in settings[:MOST_FITS]}
    compared = {name: compare(rows.where(rows["setting"] == name)) for name in settings[:MOST_FITS]}
    residuals = [plot for name, found in fits.items() if isinstance(found, Fit)
                 for plot in figures.residuals(name, found)]  # fmt: skip
    empty = len(rows.known("delta_nll")) == 0
    sections = [] if empty else [
        figures.over_training(rows, figures.DELTA), figures.over_training(rows, figures.KL), figures.over_rate(rows),
        figures.by_size(rows), figures.by_bits(rows), figures.maps(rows), induction.induction(rows),
        survival.survival(rows), *([] if means is None else [averages.averages(means)]),
    ]  # fmt: skip
    sections = [section for section in sections if section.plots or section.sentences]
    parts = [] if empty else [figures.by_subset(rows, subsets)]
    environment = Environment(
        loader=FileSystemLoader(ROOMS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    every = [plot for section in (*sections, *parts) for plot in section.plots] + residuals
    page = environment.get_template("page.html.j2").render(
        themed=plots.themed,
        night=plots.line_colours(plots.themed(plot.svg) for plot in every),
        title=title,
        measured=statement.measured(rows),
        progress=_progress(len(rows), failed, outstanding),
        headlines=statement.headlines(rows, fits, compared),
        sections=sections,
        parts=parts,
        residuals=residuals,
        fits=fits,
        compared={name: found for name, found in compared.items() if isinstance(found, Compared)},
        law=[factor.letter for factor in LAW],
        published=PUBLISHED,
        not_fitted=settings[MOST_FITS:],
        is_fit=lambda found: isinstance(found, Fit),
        estimate=statement.estimate,
        supports=statement.supports(rows, fits, compared),
        extremes=_extremes(rows),
        left_out=[(x.name, _shortened(x.revisions), x.why) for x in left_out],
        failed=failed,
        outstanding=outstanding,
        facts=_facts(rows),
        words=words,
        program=f"pythia-export {__version__}",
    )
    return page, {plot.slug: str(plot.svg) for plot in every}


def _settings(rows: Rows) -> list[str]:
    """Return the settings that round weights, those with the most rows first."""
    counts: dict[str, int] = {}
    for name, method in zip(rows["setting"].tolist(), rows["method"].tolist(), strict=True):
        if method != "none":
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: -counts[name])


def _progress(done: int, failed: int, outstanding: int) -> str:
    if not failed and not outstanding:
        return "The sweep is complete."
    return f"The sweep is not complete: {failed:,} jobs failed, {outstanding:,} are outstanding, {done:,} are here."


def _extremes(rows: Rows) -> list[tuple[str, list[dict[str, Any]]]]:
    """The costliest and the cheapest rows; each once where there are few."""
    rows = rows.where(rows["method"] != "none").known("delta_nll")
    order = np.argsort(-rows["delta_nll"], kind="stable")
    most = min(MOST_ROWS, -(-len(rows) // 2))
    dear, cheap = order[:most], order[most:][-most:][::-1]
    return [(title, [_row(rows, int(i)) for i in chosen])
            for title, chosen in (("The most costly", dear), ("The cheapest", cheap)) if len(chosen)]  # fmt: skip


def _row(rows: Rows, i: int) -> dict[str, Any]:
    names = (
        "name",
        "revision",
        "quantization",
        "delta_nll",
        "delta_nll_low",
        "delta_nll_high",
        "kld",
        "bits_per_weight",
    )
    found = {name: rows[name][i] for name in names}
    return {name: None if value != value else value for name, value in found.items()}


def _shortened(revisions: Sequence[str]) -> str:
    if len(revisions) <= MOST_LISTED // 6:
        return ", ".join(revisions)
    return f"{', '.join(revisions[:5])}, … {revisions[-1]} ({len(revisions):,} revisions)"


def _facts(rows: Rows) -> list[tuple[str, str]]:
    def distinct(name: str, most: int = 6) -> str:
        found = sorted({str(v) for v in rows[name].tolist() if v is not None})
        more = f", and {len(found) - most:,} more" if len(found) > most else ""
        return ", ".join(found[:most]) + more

    if not len(rows):
        return []
    seconds = sum(float(np.nansum(rows[f"seconds_{name}"])) for name in ("share", "quantize", "score"))
    facts = {
        "Models": distinct("name", 24),
        "Quantisations": distinct("quantization", 24),
        "Held-out text": distinct("verify"),
        "Calibration text": distinct("calibration"),
        "Versions": f"pythia-export {distinct('pythia_export')}, torch {distinct('torch')}",
        "Machines": distinct("machine"),
        "Measured": " to ".join(dict.fromkeys((distinct("when", 1).split(",")[0], max(map(str, rows["when"]))))),
        "Time": f"{seconds / 3600:,.2f} hours of tasks" if seconds >= 360 else f"{seconds:,.0f} s of tasks",
    }
    return [(name, value) for name, value in facts.items() if value]
