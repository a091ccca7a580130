"""Rows of one cache: they leave, join, move and are cut short, and no other row's numbers change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import session_fixtures as fixtures
from sessions import ROUNDING, close, tokens
from tokenizers import Tokenizer

from pythia_export.base.errors import NumericsError
from pythia_export.runtime import Sampling, Session, generate, generate_batch, generation
from pythia_export.runtime.cache import Cache

source, tokenizer, artifact, session = fixtures.source, fixtures.tokenizer, fixtures.artifact, fixtures.session


def after(session: Session, cache: Cache, rows: Sequence[Sequence[int]], step: np.ndarray) -> None:
    """A step gives every row what the same tokens give alone."""
    found = session.decode(cache, step.tolist()).copy()
    assert cache.batch == len(rows) == len(found)
    for logits, row, token in zip(found, rows, step, strict=True):
        alone = session.logits(np.array([[*row, token]]))[0, -1]
        assert close(logits, alone, ROUNDING[session.kv_dtype.name])


def test_a_token_a_row_in_the_buffer_of_the_step_before(session: Session) -> None:
    ids, later, within = tokens(2, 5), tokens(2, 4, seed=1), ROUNDING[session.kv_dtype.name]
    expected = session.logits(np.concatenate([ids, later], 1))[:, 5:]
    cache = session.start(2, 12)
    session.step(cache, ids, keep=1)
    first = session.decode(cache, later[:, 0].tolist())
    copy = first.copy()
    second = session.decode(cache, later[:, 1].tolist())
    assert (
        np.shares_memory(first, second)
        and close(copy, expected[:, 0], within)
        and close(second, expected[:, 1], within)
    )
    kept = session.step(cache, later[:, 2:3])  # what a step gives stays, also between tokens of the loop
    third = kept.copy()
    assert close(session.decode(cache, later[:, 3].tolist()), expected[:, 3], within) and (kept == third).all()


def test_the_second_text_finds_its_masks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step of one token reads is made once: ids, positions and logits for a text, masks for all of them."""
    made, value = list[tuple[int, ...]](), session._memory.value
    for _ in range(2):
        cache = session.start(1, 20)
        session.step(cache, tokens(1, 5), keep=1)
        made.clear()
        monkeypatch.setattr(session._memory, "value", lambda array: (made.append(array.shape), value(array))[1])
        for _ in range(10):
            session.decode(cache, [1])
    assert made == [(1, 1), (1, 1), (1, 1, session.config.vocab_size)]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_cache_cut_short_goes_on_from_there(session: Session, rows: int) -> None:
    ids, wrong, right = tokens(rows, 6), tokens(rows, 4, seed=1), tokens(rows, 3, seed=2)
    mask = np.ones_like(ids)
    mask[-1, : 2 * (rows > 1)] = 0
    cache, straight = session.start(rows, 20), session.start(rows, 20)
    session.step(cache, ids, mask)
    session.step(straight, ids, mask)
    for t in range(4):  # GroupQueryAttention takes several rows of several tokens at the beginning alone
        session.step(cache, wrong[:, t : t + 1])
    cache.truncate(6)
    assert cache.counts.tolist() == mask.sum(1).tolist() and cache.length == 6
    for t in range(3):
        again, once = (session.step(x, right[:, t : t + 1]) for x in (cache, straight))
        assert np.abs(again - once).max() == 0
    with pytest.raises(ValueError, match="9 columns, cut to 10"):
        cache.truncate(10)


class Taken:
    """An output as a binding of before 1.32 hands it out: empty as soon as its name is bound again."""

    def __init__(self, value: object) -> None:
        self._whole, self.empty = value, False

    def __getattr__(self, name: str) -> object:
        return getattr(self._whole, name)

    def numpy(self) -> np.ndarray:
        assert not self.empty, "ONNX Runtime 1.24.1: only OrtValues that are Tensors are convertible to Numpy objects"
        return self._whole.numpy()


def test_what_a_graph_allocated_is_there_until_the_next_step(session: Session) -> None:
    """A growing cache is cut, and loses a row, also where a binding's outputs are its own and not copies."""
    ids = tokens(2, 6)
    cache, taken = session.start(2, 20), {}
    names, outputs, bind = [*cache._present_of.values()], cache.binding.get_outputs, cache.binding.bind_output

    def get_outputs() -> list[Taken]:
        found = [Taken(value) for value in outputs()]
        taken.update(zip(names, found, strict=False))
        return found

    def bind_output(name: str, device: str) -> None:
        bind(name, device)
        if name in taken:
            taken[name].empty = True

    cache.binding.get_outputs, cache.binding.bind_output = get_outputs, bind_output
    session.step(cache, ids)
    cache.truncate(4)
    after(session, cache, ids[:, :4].tolist(), ids[:, 4])
    cache.keep([1])
    after(session, cache, ids[1:, :5].tolist(), ids[1:, 5])
    assert bool(taken) == cache.grows


def test_rows_leave_join_and_move_and_the_others_do_not_notice(session: Session) -> None:
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (9, 5, 7, 2)]
    cache = session.start(4, 40)
    generation._enter(session, cache, prompts)
    step = tokens(4, 8, seed=9)
    after(session, cache, prompts, step[:, 0])
    rows = [[*prompt, token] for prompt, token in zip(prompts, step[:, 0].tolist(), strict=True)]
    cache.keep([1, 3])
    rows = [rows[1], rows[3]]
    after(session, cache, rows, step[:2, 1])
    rows = [[*row, token] for row, token in zip(rows, step[:2, 1].tolist(), strict=True)]
    if session.moves_rows:
        assert cache.drop_padding() == 4 and cache.length == 7
        joining = [tokens(1, n, seed=20 + n)[0].tolist() for n in (6, 4)]
        generation._enter(session, cache, joining)
        rows += joining
        after(session, cache, rows, step[:, 2])
        rows = [[*row, token] for row, token in zip(rows, step[:, 2].tolist(), strict=True)]
        cache.keep([0, 3])
        after(session, cache, [rows[0], rows[3]], step[:2, 3])
    cache.restart(3)
    again = [tokens(1, 3, seed=30 + n)[0].tolist() for n in range(3)]
    generation._enter(session, cache, again)
    after(session, cache, again, step[:3, 4])


def test_what_a_cache_cannot_do_is_refused(session: Session) -> None:
    cache = session.start(2, 10)
    session.step(cache, tokens(2, 4))
    for rows in ([], [1, 0], [0, 2]):
        with pytest.raises(ValueError, match="of a cache of 2"):
            cache.keep(rows)
    with pytest.raises(ValueError, match="3 rows in a cache of 2"):
        cache.restart(3)
    longer = session.start(1, 10)
    session.step(longer, tokens(1, 5))
    with pytest.raises(ValueError, match="1 rows of 5 columns join 2 of 4"):
        cache.join(longer)


def drawn(session: Session, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Texts that end apart: at letters that are likely, if the tokens are drawn."""
    return generate_batch(session, tokenizer, prompts, count, Sampling(1.5, seed=5), stop=["a", "s", "d", " t"])


@pytest.mark.parametrize("places", [1, 3, 8])
def test_any_number_of_prompts_shares_a_few_rows(session: Session, tokenizer: Tokenizer, places: int, monkeypatch):
    """Of all lengths, ending apart, in less memory than all at once would take."""
    prompts = [tokens(1, n, seed=100 + n)[0].tolist() for n in (3, 11, 1, 7, 20, 2, 5, 13, 30, 4)]
    alone = [list(generate(session, tokenizer, prompt, 16)) for prompt in prompts]
    together = drawn(session, tokenizer, prompts, 16)
    assert len({len(row) for row in together}) > 4, "nothing ends apart"
    monkeypatch.setattr(generation, "ROWS", places)
    monkeypatch.setattr(generation, "TOKENS", 24)
    found = generate_batch(session, tokenizer, prompts, 16), drawn(session, tokenizer, prompts, 16)
    assert session.kv_dtype != np.float32 or found == (alone, together)  # one that rounds may choose another token


def test_a_row_that_reaches_the_end_of_the_memory_is_moved(session: Session, tokenizer: Tokenizer, monkeypatch) -> None:
    """One text goes on to the last position while others come and go beside it."""
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (8, 7, 6, 5, 5, 4, 3)]
    together = drawn(session, tokenizer, prompts, 40)
    assert len(max(together, key=len)) > 30 and sum(len(row) < 20 for row in together) > 2, list(map(len, together))
    monkeypatch.setattr(generation, "ROWS", 2)
    found = drawn(session, tokenizer, prompts, 40)
    assert session.kv_dtype != np.float32 or found == together


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_whose_logits_are_not_finite_ends_a_text(
    session: Session, tokenizer: Tokenizer, monkeypatch, temperature
):
    """Greedy decoding looks at them in the session, a draw where it reads them anyway."""
    run = session._run

    def spoilt(cache: Cache, new: int) -> None:
        run(cache, new)
        if cache.length == 6:
            cache._single.logits.array[0, 0, 7] = np.nan

    monkeypatch.setattr(session, "_run", spoilt)
    found, end = [], session.config.vocab_size
    with pytest.raises(NumericsError, match=rf"1 of {end:,} logits are not finite, .* of token 7 at place 0 of row 0"):
        for token in generate(session, tokenizer, [1, 2, 3], 8, temperature=temperature, seed=3):
            found.append(token)
    assert len(found) == 3
