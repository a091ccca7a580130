"""What a sweep will do: jobs, bytes to fetch, memory and time by model, and what is done already. Asks no hub."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..commands.footprint import (
    inside_operations,
    observing_operations,
    peak_memory,
    rounding_operations,
    scoring_operations,
    sensitivity_operations,
)
from ..model import suite
from ..model.mean import is_mean, terms
from ..proof.autoencoder import autoencoders
from ..records.record import Json
from .folder import Folder
from .jobs import label, versions
from .schema import SweepFile
from .snapshots import LeftOut, Snapshot, snapshots

RATE = 3e10  # operations a second and core: a guess, until results of the model say better
GPU_RATE = 3e12  # of one: a smaller guess than its data sheet's
MARGIN = 1.3  # of memory, over the estimate
TASK_SECONDS = 10.0  # starting Python, opening a checkpoint


@dataclass(frozen=True)
class Row:
    """One model's line of a plan. memory_gb and hours are for one task, a checkpoint with all its quantisations;
    `measured` says that the hours come from results."""

    name: str
    parameters: int
    checkpoints: int
    jobs: int
    done: int
    failed: int
    fetch_bytes: int
    memory_gb: float
    hours: float
    measured: bool


@dataclass(frozen=True)
class Plan:
    rows: tuple[Row, ...]
    quantizations: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    cores: int
    device: str

    @property
    def jobs(self) -> int:
        return sum(row.jobs for row in self.rows)

    @property
    def done(self) -> int:
        return sum(row.done for row in self.rows)


@dataclass(frozen=True)
class Need:
    """What a scheduler is asked for, for one task."""

    memory_gb: float
    hours: float


def plan(file: SweepFile, folder: Folder | None = None) -> Plan:
    """`folder` is where it was run before, if it was.

    Raises:
        RecipeError, SourceError: as `snapshots`, `SweepFile.recipe` and `need`.
    """
    members, left_out = snapshots(file.sweep)
    by_name: dict[str, list[Snapshot]] = {}
    for member in members:
        by_name.setdefault(member.name, []).append(member)
    known = _Known(file, folder)
    rows = []
    for name, own in by_name.items():
        done, failed = known.of(own)
        measured = known.hours(name)
        wanted = need(file, own[0])
        rows.append(
            Row(
                name, own[0].config.parameters, len(own), len(own) * len(file.quantize), done, failed,
                _fetched(own),
                wanted.memory_gb, wanted.hours if measured is None else measured, measured is not None,
            )
        )  # fmt: skip
    return Plan(
        tuple(rows), tuple(label(q) for q in file.quantize), tuple(left_out), file.resources.cores,
        file.resources.device,
    )  # fmt: skip


def _fetched(own: list[Snapshot]) -> int:
    """Return the bytes of one model's revisions, each once: those of a mean may be in the sweep, or in another mean."""
    pythia = suite.find(own[0].model.id) if own[0].model.id is not None else None
    if pythia is None:
        return 0  # nothing of a run of one's own
    revisions: set[str] = set()
    for member in own:
        named = [t.revision for t in terms(member.revision, pythia.revisions)] if is_mean(member.revision) else None
        revisions |= {pythia.last_step if name == "main" else name for name in named or [member.revision]}
    return 2 * own[0].config.parameters * len(revisions)


def need(file: SweepFile, member: Snapshot) -> Need:
    """Return memory and time of a task of this snapshot, by its size and autoencoders; or what the sweep's file says.

    Raises:
        SourceError, RecipeError, IntegrityError: as `autoencoders`.
    """
    given, config, sae = file.resources, member.config, file.verify.sae
    recipes = [file.recipe(member.model, quantize) for quantize in file.quantize]
    products = {recipe.quantize.products for recipe in recipes}
    looked = {n: autoencoders(sae, config, n, weights=False) for n in products} if sae is not None else {}
    # Two sets of hidden states are held, the original's and the quantised weights'.
    states = 4 * config.hidden_size * file.verify.tokens
    memory = max(peak_memory(config, r, looked.get(r.quantize.products, ())) for r in recipes) + states
    work = scoring_operations(config, file.verify.tokens, len(recipes) + 1)
    work += sum(rounding_operations(config, recipe.quantize) for recipe in recipes)
    gptq = [recipe.quantize for recipe in recipes if recipe.uses_gptq]
    if file.calibration is not None:
        # What reads the original's activations does so together.
        apart = [q for q in gptq if q.hessian != "original"]
        together = {q.form: q for q in gptq if q.hessian == "original"}
        threads = 0 if given.device == "cuda" else given.cores
        observed = (*apart, *together.values())
        work += sum(observing_operations(config, q, file.calibration, threads) for q in observed)
        if any(q.fisher for q in gptq):  # measured once, with attention where one asks for it
            longest = max((q for q in gptq if q.fisher), key=lambda q: q.measures_attention)
            work += sensitivity_operations(config, longest, file.calibration)
    if file.verify.inside or sae is not None:
        for recipe in recipes:
            features = sum(one.d_in * one.d_sae for one in looked.get(recipe.quantize.products, ()))
            work += inside_operations(config, recipe.verify, features)
    seconds = TASK_SECONDS + work / (GPU_RATE if given.device == "cuda" else RATE * given.cores)
    return Need(
        given.memory_gb if given.memory_gb is not None else round(MARGIN * memory / 1e9, 1),
        given.hours if given.hours is not None else seconds / 3600,
    )


class _Known:
    """What a directory says of the sweep that ran there, as far as it is this sweep."""

    def __init__(self, file: SweepFile, folder: Folder | None) -> None:
        manifest = folder.manifest() if folder is not None else None
        self._folder = folder
        self._keys: dict[tuple[str, str], list[str]] = {}
        self._done: set[str] = set()
        self._failed: set[str] = set()
        if folder is None or manifest is None or manifest.versions != versions():
            return
        then: Any = manifest.sweep
        today = file.model_dump(mode="json")
        if (then["verify"], then["calibration"]) != (today["verify"], today["calibration"]):
            return
        self._done, self._failed = folder.done(), folder.failed()
        wanted = [i for i, quantize in enumerate(then["quantize"]) if quantize in today["quantize"]]
        for s in manifest.snapshots:
            keys = manifest.jobs[s.task]
            self._keys[s.name, s.revision] = [keys[i] for i in wanted]

    def of(self, members: list[Snapshot]) -> tuple[int, int]:
        """Jobs that are done, and that failed."""
        keys = {key for m in members for key in self._keys.get((m.name, m.revision), ())}
        return len(keys & self._done), len(keys & (self._failed - self._done))

    def hours(self, name: str) -> float | None:
        """Return the hours of a task, from one that is done."""
        for (of, _), keys in self._keys.items():
            if of == name and self._folder is not None and keys and self._done.issuperset(keys):
                records = [self._folder.result(key) for key in keys]
                return sum(r.seconds.total for r in records if r is not None) / 3600
        return None


def to_json(planned: Plan) -> Json:
    return asdict(planned) | {"jobs": planned.jobs, "done": planned.done}
