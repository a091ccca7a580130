"""With a draft the text is the target's own: greedy to the token, drawn to the last digit of every probability."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import session_fixtures as fixtures
from models import InMemory, hugging_face, on_disk, small_config
from sessions import QUANTIZE, VOCAB, export_and_publish, tokens
from tokenizers import Tokenizer

from pythia_export.artifact import Artifact
from pythia_export.base.errors import RecipeError
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Draft, Sampling, Session, continued, generate_batch, require_same_tokens
from pythia_export.runtime.sampling import distribution
from pythia_export.runtime.speculation import Drawn, Speculation

source, tokenizer, artifact, session = fixtures.source, fixtures.tokenizer, fixtures.artifact, fixtures.session

SIZE = 4  # tokens of the written-down models
NEVER = (SIZE,)  # an end token that none of them has


class Column:
    """A token in a cache, and whether it came in a pass of several."""

    def __init__(self, token: int, several: bool) -> None:
        self.token, self.several = token, several


class TableCache:
    def __init__(self, max_len: int) -> None:
        self.max_len, self.columns = max_len, list[Column]()

    @property
    def length(self) -> int:
        return len(self.columns)

    def truncate(self, length: int) -> None:
        assert length <= self.length
        del self.columns[length:]


class Table:
    """A model whose logits are written down for every pair of last tokens, and its session.

    A pass of several tokens after the prompt is off by `rounding`, as is every one over what such a pass has cached.
    """

    def __init__(
        self, seed: int, rounding: float = 0.0, equal: bool = False, positions: int = 200, layers: int = 12
    ) -> None:
        rng = np.random.default_rng(seed)
        self.table = rng.normal(0, 1.5, (SIZE, SIZE, SIZE)).astype(np.float32)
        if equal:  # the likeliest two differ by less than the rounding, or not at all
            self.table = np.round(self.table) + (rng.integers(0, 3, self.table.shape) * 1e-7).astype(np.float32)
        self.config = replace(small_config(layers, SIZE, positions), eos_token_ids=NEVER)
        self.rounding, self.passes, self.fed = rounding, 0, 0

    def start(self, batch: int, max_len: int) -> TableCache:
        assert batch == 1 and max_len <= self.config.max_positions
        return TableCache(max_len)

    def step(self, cache: TableCache, ids: np.ndarray, mask: None = None, *, keep: int | None = None) -> np.ndarray:
        found, several = [], ids.shape[1] > 1 and cache.length > 0
        self.passes, self.fed = self.passes + 1, self.fed + ids.shape[1]
        for token in ids[0].tolist():
            cache.columns.append(Column(token, several))
            before = cache.columns[-2].token if cache.length > 1 else 0
            logits = self.table[before, token].copy()
            if self.rounding and any(column.several for column in cache.columns):
                logits += self.rounding * np.random.default_rng([cache.length, token]).uniform(-1, 1, SIZE)
            found.append(logits.astype(np.float32))
        assert cache.length <= cache.max_len
        return np.array([found])[:, -(keep or len(found)) :]

    def decode(self, cache: TableCache, tokens: Sequence[int], *, unchecked: bool = False) -> np.ndarray:
        return self.step(cache, np.array([tokens]))[:, 0]


def alone(target: Table, prompt: Sequence[int], count: int) -> list[int]:
    ids, cache = list(prompt), target.start(1, 200)
    logits = target.step(cache, np.array([ids]))[0, -1]
    while True:
        ids.append(int(logits.argmax()))
        if len(ids) == len(prompt) + count:
            return ids[len(prompt) :]
        logits = target.decode(cache, ids[-1:])[0]


# Greedy


@pytest.mark.parametrize("rounding", [0.0, 1e-6])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_the_target_to_the_token_ties_included(seed: int, equal: bool, rounding: float) -> None:
    target = Table(seed, rounding, equal)
    other = Table(seed + 100, equal=equal, layers=1)
    other.table = np.where(np.random.default_rng(seed).random(other.table.shape[:2])[..., None] < 0.3, other.table,
                           target.table).astype(np.float32)  # fmt: skip
    expected = alone(target, [1, 2], 60)
    for draft in (Draft(other), Draft(target)):
        target.fed = 0
        found = list(Speculation(target, draft, [1, 2], 60, Sampling(), Drawn(np.random.default_rng(0))))
        assert found == expected
        assert draft.tokens + len(draft.single_seconds) + 1 >= 60 and draft.accepted <= draft.proposed
        assert draft.again <= 60, "a token is computed again at most once"
        assert draft.again == 0 or (rounding and equal)


def test_a_good_draft_takes_few_passes_and_a_bad_one_proposes_little() -> None:
    target, twin, stranger = Table(1), Table(1, layers=1), Table(1, layers=1)
    stranger.table = -target.table
    for draft, most, least in ((Draft(twin), 16, 0.99), (Draft(stranger), 200, -1)):
        found = list(Speculation(target, draft, [1], 80, Sampling(), Drawn(np.random.default_rng(0))))
        assert found == alone(target, [1], 80)
        assert draft.passes <= most and draft.acceptance is not None and draft.acceptance > least
    assert draft.proposed < 1.2 * draft.passes and draft.acceptance == 0


def test_a_shorter_context_of_the_draft_is_no_end_of_the_text() -> None:
    target, draft = Table(1), Draft(Table(1, positions=20, layers=1))
    assert list(Speculation(target, draft, [1] * 5, 60, Sampling(), Drawn(np.random.default_rng(0)))) == alone(
        target, [1] * 5, 60
    )
    assert draft.tokens and len(draft.single_seconds) > 35


def test_tokens_that_the_draft_does_not_have_are_not_fed_to_it() -> None:
    target, small = Table(3), Table(3)
    small.config = replace(small.config, vocab_size=SIZE - 1)
    small.table = small.table[: SIZE - 1, : SIZE - 1]
    found = list(Speculation(target, Draft(small), [1], 40, Sampling(), Drawn(np.random.default_rng(0))))
    assert found == alone(target, [1], 40)


@pytest.mark.parametrize("native", [True, False])
def test_real_sessions_are_the_target_to_the_token(artifact: Artifact, tokenizer: Tokenizer, other, native) -> None:
    """Whatever the cache; with itself as a draft, and with one that is mostly wrong."""
    session = Session.open(artifact, threads=1, native=native)
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (7, 1, 17)]
    expected = generate_batch(session, tokenizer, prompts[:1], 30)
    expected += [generate_batch(session, tokenizer, [prompt], 30)[0] for prompt in prompts[1:]]
    for drafted in (session, other):
        draft = Draft(drafted)
        assert generate_batch(session, tokenizer, prompts, 30, draft=draft) == expected
    assert draft.proposed


def test_stop_strings_ends_and_the_last_position_are_as_without(artifact, session, tokenizer) -> None:
    draft = Draft(session)
    prompt = tokens(1, 8, seed=4)[0].tolist()
    for sampling, count, stop in ((Sampling(), 40, ()), (Sampling(), 20, ("a", "s")), (Sampling(1.5, seed=1), 40, ())):
        plain = list(continued(session, tokenizer, [prompt], count, sampling, stop))
        found = list(continued(session, tokenizer, [prompt], count, sampling, stop, draft))
        assert found[-1].token is None and len(found) <= count + 1
        assert sampling.temperature or found == plain


@pytest.fixture(scope="module")
def other(tokenizer, tmp_path_factory) -> Session:
    config = small_config(layers=1, vocab=VOCAB, positions=48)
    source = InMemory(config, on_disk(hugging_face(config, seed=5)))
    out = tmp_path_factory.mktemp("draft") / "out"
    export_and_publish(source, tokenizer, out, Export(), Quantize(method="none"))
    return Session.open(Artifact.open(out), threads=1)


@pytest.mark.parametrize("kept", [None, "float16", "int8"])
def test_up_to_eight_tokens_are_computed_by_our_kernels_as_one_is(source, tokenizer, kept, tmp_path: Path) -> None:
    """Bit for bit at accuracy level 4, so that there are no ties to look for."""
    export = Export(accuracy_level=4, kv_cache=kept)
    export_and_publish(source[0], tokenizer, tmp_path / "out", export, Quantize(**QUANTIZE))
    session = Session.open(Artifact.open(tmp_path / "out"), threads=1)
    if session.speed != "native":
        pytest.skip(session.why)
    ids = tokens(1, 40)
    cache = session.start(1, 40)
    session.step(cache, ids[:, :12])
    single = [session.step(cache, ids[:, t : t + 1])[0, 0] for t in range(12, 40)]
    for several in range(2, 9):
        cache.truncate(12)
        for t in range(12, 40 - several, several):
            found = session.step(cache, ids[:, t : t + several])[0]
            assert (found == np.stack(single[t - 12 : t - 12 + several])).all(), several


def test_a_draft_with_another_tokenizer_is_refused(tokenizer: Tokenizer) -> None:
    another = Tokenizer.from_str(tokenizer.to_str())
    require_same_tokens(tokenizer, another)
    another.add_tokens(["zebra"])
    with pytest.raises(RecipeError, match=r"another tokenizer: 0 of .* 280 tokens .* among its 281") as caught:
        require_same_tokens(tokenizer, another)
    assert "pythia-70m" in caught.value.hint


# Drawn


class EveryOutcome:
    """Dice that go through every outcome, one run after another: `weight` is the probability of the run."""

    def __init__(self) -> None:
        self.path: list[list[tuple[int, float]]] = []  # of each throw the outcomes that are left; the first counts

    def runs(self) -> Iterator[EveryOutcome]:
        while True:
            self.at, self.weight = 0, 1.0
            yield self
            del self.path[self.at :]
            while self.path and len(self.path[-1]) == 1:
                self.path.pop()
            if not self.path:
                return
            self.path[-1] = self.path[-1][1:]

    def _throw(self, p: Sequence[float]) -> int:
        if self.at == len(self.path):
            self.path.append([(i, x) for i, x in enumerate(p) if x > 0])
        outcome, probability = self.path[self.at][0]
        self.at, self.weight = self.at + 1, self.weight * probability
        return outcome

    def index(self, p: np.ndarray) -> int:
        return self._throw(p.tolist())

    def comes(self, probability: float) -> bool:
        return self._throw([1 - probability, probability]) == 1


def exactly(target: Table, prompt: Sequence[int], count: int, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every text, by the chain rule."""
    texts = {tuple(prompt): 1.0}
    for _ in range(count):
        texts = {
            (*text, token): weight * p
            for text, weight in texts.items()
            for token, p in enumerate(distribution(target.table[text[-2], text[-1]], sampling).tolist())
            if p > 0
        }
    return {text[len(prompt) :]: weight for text, weight in texts.items()}


SAMPLINGS = [Sampling(1.0), Sampling(0.6, top_k=3), Sampling(1.3, top_p=0.8)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["plain", "top_k", "top_p"])
def test_every_text_has_exactly_the_targets_probability(sampling: Sampling) -> None:
    """All outcomes of all throws, weighed: proposals, their acceptance, replacements, the token after the last."""
    target, prompt, found = Table(1), [1, 2], Counter[tuple[int, ...]]()
    rounds = set()
    for dice in EveryOutcome().runs():
        draft = Draft(Table(51, layers=1), rounding=0.0)
        text = tuple(Speculation(target, draft, prompt, 4, sampling, dice))
        found[text] += dice.weight
        rounds.add((draft.proposed, draft.accepted))
    expected = exactly(target, prompt, 4, sampling)
    assert found.keys() == expected.keys() and {(2, 1), (2, 2), (3, 0), (3, 1)} <= rounds
    assert max(abs(found[text] - weight) for text, weight in expected.items()) < 1e-12


def test_draws_by_a_seed_follow_the_targets_probabilities() -> None:
    """Chi-squared over all texts of three tokens."""
    target, draft, sampling, n = Table(7), Draft(Table(8, layers=1)), Sampling(1.0), 2500
    list(Speculation(target, draft, [1, 2], 12, sampling, Drawn(np.random.default_rng(0))))  # after which it proposes
    rng = np.random.default_rng(1)
    counts = Counter(tuple(Speculation(target, draft, [1, 2], 3, sampling, Drawn(rng))) for _ in range(n))
    expected = {text: n * p for text, p in exactly(target, [1, 2], 3, sampling).items()}
    rare = [text for text, count in expected.items() if count < 5]
    cells = [(counts[text], count) for text, count in expected.items() if count >= 5]
    cells.append((sum(counts[text] for text in rare), sum(expected[text] for text in rare)))
    chi_squared, degrees = sum((a - b) ** 2 / b for a, b in cells), len(cells) - 1
    assert draft.accepted > 500 and chi_squared < degrees + 3 * math.sqrt(2 * degrees), (chi_squared, degrees)


def test_a_seed_repeats_a_text(session: Session, tokenizer: Tokenizer, other: Session) -> None:
    def text(seed: int) -> list[list[int]]:
        sampling = Sampling(1.0, top_p=0.95, seed=seed)
        return generate_batch(session, tokenizer, [[5, 6, 7]], 30, sampling, draft=Draft(other))

    assert text(1) == text(1) != text(2)
