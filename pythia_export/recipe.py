"""The schema of a recipe: one TOML file, one artifact. Unknown keys are errors that name the nearest valid one.

[model]        what is exported        [export]   the graph's target
[calibration]  what GPTQ observes      [verify]   the held-out text and the gates
[quantize]     how weights are rounded
"""

from __future__ import annotations

import difflib
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_serializer, model_validator

from .errors import RecipeError
from .neox import HEAD
from .suite import find, resolve

BATCH = 1024  # sequences that Pythia was trained on at a step
PILE_SUBSETS = (
    "ArXiv", "BookCorpus2", "Books3", "DM Mathematics", "Enron Emails", "EuroParl", "FreeLaw", "Github",
    "Gutenberg (PG-19)", "HackerNews", "NIH ExPorter", "OpenSubtitles", "OpenWebText2", "PhilPapers", "Pile-CC",
    "PubMed Abstracts", "PubMed Central", "StackExchange", "USPTO Backgrounds", "Ubuntu IRC", "Wikipedia (en)",
    "YoutubeSubtitles",
)  # fmt: skip

Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[16, 32, 64, 128, 256, -1]
Method = Literal["gptq", "rtn", "none"]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """Which checkpoint: a model of the suite or another on the hub, the embedded `demo`, or a local directory.

    `id` becomes the full hub id: `410m-deduped@step3000` is EleutherAI/pythia-410m-deduped at step3000.
    """

    id: NonEmpty | None = Field(
        None, description="hub repository, a short name (`410m`, `pythia-160m-seed3@step512`), or `demo`"
    )
    path: Path | None = Field(None, description="local checkpoint directory, relative to the recipe file")
    revision: NonEmpty = Field("main", description="branch, tag or commit; Pythia's steps are branches: `step3000`")

    @model_validator(mode="before")
    @classmethod
    def _names_are_resolved(cls, given: Any) -> Any:
        name = given.get("id") if isinstance(given, dict) else None
        if not isinstance(name, str) or not name:
            return given
        revision = given.get("revision")
        if "@" in name and revision is not None:
            raise ValueError(f"`id` names a revision, {name!r}, and `revision` another, {revision!r}")
        try:
            model_id, pinned = resolve(f"{name}@{revision}" if isinstance(revision, str) and revision else name)
        except RecipeError as e:
            raise ValueError(f"{e}. {e.hint}" if e.hint else str(e)) from None
        return given | {"id": model_id} | ({"revision": pinned} if pinned else {})

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.id is None) == (self.path is None):
            raise ValueError("give either `id` or `path`")
        return self

    @classmethod
    def named(cls, name: str) -> Self:
        """The model that a name on the command line stands for.

        Raises:
            RecipeError: as `resolve`.
        """
        model_id, revision = resolve(name)
        return cls(id=model_id, **({"revision": revision} if revision else {}))

    @property
    def name(self) -> str:
        return self.id if self.id is not None else str(self.path)


class Text(Section):
    """A text source, shared by [calibration] and [verify]."""

    source: Literal["hub", "file", "wikitext2", "training-order", "python-stdlib"] = Field(
        description="`hub`: a file of a hub data set; `file`: .jsonl or .txt, plain, .gz or .zst, or .parquet; "
        "`wikitext2`: joined and cut as GPTQ's authors did, from the hub or `path`; `training-order`: what Pythia was "
        "trained on, in order, from the hub or `path` (a Megatron memory map, .idx and .bin); `python-stdlib`: this "
        "interpreter's own sources"
    )
    dataset: NonEmpty | None = Field(None, description="hub data set, `owner/name` or `owner/name@revision`")
    file: NonEmpty | None = Field(None, description="file inside the hub data set; needed where it has several")
    path: Path | None = Field(None, description="local file, relative to the recipe file")
    subsets: tuple[NonEmpty, ...] = Field((), description="only these parts of the Pile, by `meta.pile_set_name`")
    eos: bool = Field(True, description="end each document with the end-of-text token, as Pythia's training did")
    batches: str | None = Field(
        None,
        pattern=r"^\d+:\d+$",
        description=f"of training-order: `0:4` are the first four, of {BATCH} sequences each",
    )
    sequence_length: int = Field(2048, ge=8, description="tokens a window")
    seed: int = Field(0, ge=0)

    @property
    def batch_range(self) -> tuple[int, int] | None:
        if self.batches is None:
            return None
        first, _, end = self.batches.partition(":")
        return int(first), int(end)

    @property
    def described(self) -> str:
        """For people: where the text comes from, by the recipe alone."""
        if self.source == "python-stdlib":
            return "Python's standard library"
        where = self.path.name if self.path else "/".join(n for n in (self.dataset, self.file) if n)
        of = f", batches {self.batches}" if self.batches else ""
        parts = f", {' and '.join(self.subsets)} alone" if self.subsets else ""
        kind = {"wikitext2": "WikiText-2", "training-order": "training order"}.get(self.source, "")
        return ", ".join(x for x in (kind, where) if x) + of + parts

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source == "hub" and not self.dataset:
            raise ValueError("source = 'hub' needs `dataset`")
        if self.source == "file" and self.path is None:
            raise ValueError("source = 'file' needs `path`")
        if self.path is not None and (self.dataset or self.file):
            raise ValueError("give either `path` or a hub data set's `dataset` and `file`")
        return self

    @model_validator(mode="after")
    def _what_is_given_has_a_use(self) -> Self:
        """What a source would not look at is a mistake about what it does."""
        uses = {
            "dataset": ("hub", "wikitext2", "training-order"), "file": ("hub", "wikitext2"),
            "path": ("file", "wikitext2", "training-order"), "batches": ("training-order",),
            "subsets": ("hub", "file"), "eos": ("hub", "file", "python-stdlib"),
        }  # fmt: skip
        for key, sources in uses.items():
            given = not self.eos if key == "eos" else bool(getattr(self, key))
            if given and self.source not in sources:
                raise ValueError(f"`{key}` is for source = {' or '.join(map(repr, sources))}, not {self.source!r}")
        return self

    @model_validator(mode="after")
    def _batches_rise(self) -> Self:
        if self.batch_range is not None and self.batch_range[0] >= self.batch_range[1]:
            raise ValueError(f"`batches` {self.batches}: the first must be below the end")
        return self

    @model_validator(mode="after")
    def _subsets_are_spelt_as_the_pile_does(self) -> Self:
        for name in self.subsets:
            lowered = {s.lower(): s for s in PILE_SUBSETS}
            near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.75)
            if name not in PILE_SUBSETS and near:
                raise ValueError(f"`subsets`: {name!r} is no part of the Pile; did you mean {lowered[near[0]]!r}?")
        return self


class Calibration(Text):
    samples: int = Field(128, ge=1, description="windows; all sequences of `batches` if not given with them")
    memory_gb: float = Field(4.0, ge=0, description="activations beyond this lie on disk while layers are quantised")

    @model_validator(mode="before")
    @classmethod
    def _batches_are_taken_whole(cls, given: Any) -> Any:
        match = isinstance(given, dict) and re.fullmatch(r"(\d+):(\d+)", str(given.get("batches")))
        if match and "samples" not in given and int(match[1]) < int(match[2]):
            return given | {"samples": BATCH * (int(match[2]) - int(match[1]))}
        return given


class Gate(Section):
    """A limit for what is estimated from text: `ppl_ratio = 1.05`, or `{ limit = 1.05, confidence = 0.99 }`."""

    limit: float = Field(gt=0)
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of the interval whose far end must clear the limit")

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_limit(cls, given: Any) -> Any:
        return {"limit": given} if isinstance(given, int | float) and not isinstance(given, bool) else given

    @model_serializer(mode="wrap")
    def _as_it_was_given(self, dump: Any) -> Any:
        return self.limit if self.confidence == Gate.model_fields["confidence"].default else dump(self)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        return {"anyOf": [{"type": "number"}, handler(core_schema)]}


class RatioGate(Gate):
    limit: float = Field(gt=1)


class ShareGate(Gate):
    limit: float = Field(gt=0, le=1)


class Gates(Section):
    """What the artifact must meet; exit code 10 unless every gate passes. Left out: not checked.

    The first two are measured outright. The others are estimated: a gate passes when the far end of its interval clears
    the limit, fails when the near end does not, and is inconclusive in between.
    """

    export_max_abs: float | None = Field(
        None, gt=0, description="max |logit difference| of ORT against torch on the same weights, accuracy level 0"
    )
    decode_max_abs: float | None = Field(
        None, gt=0, description="the same between one pass and cached decode, batches and left padding"
    )
    ppl_ratio: RatioGate | None = Field(None, description="most that perplexity / original's perplexity may be")
    delta_nll: Gate | None = Field(None, description="most that it may cost, nats/token: the logarithm of ppl_ratio")
    kld_mean: Gate | None = Field(None, description="most that the mean KL divergence may be, nats/token")
    same_top: ShareGate | None = Field(None, description="least share of tokens with the same argmax")
    min_tokens: int | None = Field(None, ge=1, description="least number of held-out tokens")
    regression: Gate | None = Field(
        None, description="with `verify --against`: most that the mean KL divergence may exceed the other artifact's"
    )


class Verify(Text):
    tokens: int = Field(32768, ge=64, description="held-out tokens to score")
    gates: Gates = Gates()


class Scheme(Section):
    """How one linear is stored. `bits` 3 is rounded to 3 bits and stored in 4."""

    bits: Bits = 4
    group_size: GroupSize = Field(128, description="input columns that share a scale; -1 is the whole row")
    symmetric: bool = True

    @property
    def stored_bits(self) -> int:
        return 4 if self.bits == 3 else self.bits


class Override(Section):
    """A linear whose name matches `pattern` (shell wildcards; later ones win) is treated otherwise."""

    pattern: NonEmpty
    method: Method | None = None
    bits: Bits | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None


class Head(Section):
    """The output projection: by far the largest single linear of the small models."""

    method: Method = Field("gptq", description="`none` keeps the head in float16")
    bits: Bits = 8
    group_size: GroupSize = 128
    symmetric: bool = True


class Quantize(Section):
    method: Method = "gptq"
    bits: Bits = 4
    group_size: GroupSize = Field(128, description="input columns that share a scale; -1 is the whole row")
    symmetric: bool = True
    act_order: bool = Field(True, description="quantise columns by falling Hessian diagonal; their stored order stays")
    damp: float = Field(0.01, gt=0, le=1, description="added to the Hessian's diagonal, relative to its mean")
    max_damp: float = Field(0.1, gt=0, le=1, description="the damping ladder doubles `damp` up to here, then fails")
    clip: bool = Field(True, description="search each group's scale for the least error, instead of spanning all of it")
    error_correction: bool = Field(
        True, description="make up for the error of the layers before, against the activations of the original model"
    )
    joint_hessian: bool = Field(
        True, description="round dense knowing that 4h_to_h will make up for its errors; with error_correction only"
    )
    fisher: bool = Field(
        True, description="let outputs make up for each other's errors as the loss feels them: one backward pass more"
    )
    bits_per_weight: float | None = Field(
        None, gt=0, le=9, description="budget of stored bits, scales and head included: 8 bits go where they save most"
    )
    embedding: Literal["float32", "float16", "int8", "int4"] = "float16"
    products: Literal[4, 2] = Field(
        4,
        description="matrix products a layer: 4 as in the checkpoint; 2 folds the LayerNorms into the weights, makes "
        "one matrix of QKV and h_to_4h, and one of dense and 4h_to_h",
    )
    head: Head = Head()
    override: tuple[Override, ...] = ()

    @model_validator(mode="after")
    def _ladder_climbs(self) -> Self:
        if self.max_damp < self.damp:
            raise ValueError(f"max_damp {self.max_damp} is below damp {self.damp}")
        return self

    @model_validator(mode="after")
    def _budget_is_measured(self) -> Self:
        if self.bits_per_weight is not None and self.method != "gptq":
            raise ValueError("bits_per_weight measures on calibration text: it needs method = 'gptq'")
        return self

    def linear(self, name: str) -> tuple[Method, Scheme]:
        """Method and scheme of one linear, by its on-disk name without `.weight`."""
        if name == HEAD:
            method, scheme = self.head.method, self.head.model_dump(include={"bits", "group_size", "symmetric"})
            if self.method == "none":
                method = "none"
            elif self.method == "rtn" and method == "gptq":
                method = "rtn"
        else:
            method, scheme = self.method, self.model_dump(include={"bits", "group_size", "symmetric"})
        for rule in self.override:
            if fnmatchcase(name, rule.pattern):
                method = rule.method or method
                scheme |= rule.model_dump(include={"bits", "group_size", "symmetric"}, exclude_none=True)
        return method, Scheme(**scheme)


class Export(Section):
    target: Literal["cpu", "cuda", "web"] = "cpu"
    rotary: Literal["custom", "gqa", "onnx"] = Field(
        "custom",
        description="`custom`: the op pythia.RotaryAttention, carried as a function over ONNX Runtime's ops; "
        "`gqa`: those ops directly; `onnx`: standard ONNX attention",
    )
    accuracy_level: Literal[0, 4] = Field(
        0, description="MatMulNBits: 4 quantises activations to int8 (faster on CPU), 0 keeps them in float"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="activations and scales")
    kv_cache: Literal["float32", "float16", "int8"] | None = Field(
        None,
        description="type of cached keys and values; as `dtype` if not given. `int8` has a scale for each head and "
        "token. A smaller cache is read faster by the native kernels, and converted at a cost without them",
    )

    @property
    def cache_dtype(self) -> Literal["float32", "float16", "int8"]:
        return self.kv_cache or self.dtype

    @model_validator(mode="after")
    def _converted_cache_is_ours(self) -> Self:
        if self.cache_dtype != self.dtype and (self.rotary != "custom" or self.target != "cpu"):
            raise ValueError(
                f"kv_cache = '{self.kv_cache}' with activations of {self.dtype} needs rotary = 'custom' and "
                f"target = 'cpu', not '{self.rotary}' and '{self.target}'"
            )
        return self

    @model_validator(mode="after")
    def _cpu_is_float32(self) -> Self:
        if self.dtype == "float16" and self.target != "cuda":
            raise ValueError("dtype = 'float16' is for target = 'cuda'")
        return self


class Recipe(Section):
    model: Model
    calibration: Calibration | None = None
    quantize: Quantize = Quantize()
    export: Export = Export()
    verify: Verify

    @model_validator(mode="before")
    @classmethod
    def _training_order_is_the_models_own(cls, given: Any) -> Any:
        """The data set follows from the model, where one is known."""
        if not isinstance(given, dict) or not isinstance(given.get("model"), dict):
            return given
        try:
            model = find(resolve(str(given["model"].get("id")))[0])
        except RecipeError:
            model = None
        sections = {k: given[k] for k in ("calibration", "verify") if isinstance(given.get(k), dict)}
        for name, section in sections.items():
            if section.get("source") == "training-order" and not (section.get("dataset") or section.get("path")):
                if model is None or model.training_order is None:
                    raise ValueError(
                        f"[{name}] source = 'training-order': the order in which {given['model'].get('id')} was "
                        "trained is not on the hub as a memory map; name a `dataset` or a `path`"
                    )
                given = given | {name: section | {"dataset": model.training_order}}
        return given

    @model_validator(mode="after")
    def _gptq_observes(self) -> Self:
        if self.uses_gptq and self.calibration is None:
            raise ValueError("method = 'gptq' needs a [calibration] section")
        return self

    @property
    def uses_gptq(self) -> bool:
        q = self.quantize
        return "gptq" in (q.method, *(rule.method for rule in q.override))


def load_recipe(name: str) -> Recipe:
    """Read a recipe by path, or by the name of one that came with the package (`demo`).

    Relative paths inside it are taken from the file's own folder.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, a value out of range.
    """
    path = Path(name)
    if path.name == name and path.suffix != ".toml" and not path.is_file():
        shipped = recipe_names()
        if name not in shipped:
            near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.4)
            raise RecipeError(
                f"no recipe called `{name}`",
                hint=f"Did you mean {', '.join(near)}?" if near else "`pythia-export recipes` lists them.",
            )
        path = recipes_folder() / f"{name}.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file", hint="`pythia-export recipes` lists shipped ones.") from None
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: cannot be read: {e}") from e
    except tomllib.TOMLDecodeError as e:
        raise RecipeError(f"{path}: not TOML: {e}") from e
    return _anchor(parse_recipe(raw, str(path)), path.parent)


def parse_recipe(raw: dict[str, Any], where: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as e:
        raise RecipeError("\n".join(_explain(where, error) for error in e.errors())) from None


def recipes_folder() -> Path:
    """Inside the wheel, or at the top of a checkout."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    return sorted(p.stem for p in recipes_folder().glob("*.toml"))


def _anchor(recipe: Recipe, folder: Path) -> Recipe:
    def anchored(section: Any) -> Any:
        if section is None or section.path is None or section.path.is_absolute():
            return section
        return section.model_copy(update={"path": folder / section.path})

    return recipe.model_copy(
        update={name: anchored(getattr(recipe, name)) for name in ("model", "calibration", "verify")}
    )


def _explain(where: str, error: Any) -> str:
    place = [str(p) for p in error["loc"]]
    dotted = ".".join(place)
    if error["type"] == "extra_forbidden":
        valid = _keys_at(place[:-1])
        near = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.5)
        meant = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(valid)}"
        return f"{where}: unknown key `{dotted}`; {meant}"
    if error["type"] == "missing":
        return f"{where}: `{dotted}` is required and missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    found = f" (found {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {f'`{dotted}`: ' if dotted else ''}{message}{found}"


def _keys_at(place: list[str]) -> list[str]:
    section: Any = Recipe
    for key in place:
        if key.isdigit():
            continue
        annotation = section.model_fields[key].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return sorted(section.model_fields)
