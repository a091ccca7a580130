"""Running an artifact: the cache stays in place, padding changes nothing, text comes out whole; no torch."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import session_fixtures as fixtures
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from sessions import QUANTIZE, ROUNDING, VOCAB, close, export_and_publish, scripted, tokens
from tokenizers import Tokenizer, models

from pythia_export.artifact import Artifact
from pythia_export.base.errors import (
    EnvironmentProblem,
    IntegrityError,
    RecipeError,
    ResourceError,
    SourceError,
)
from pythia_export.graph.levels import with_accuracy_level
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import (
    Sampling,
    Session,
    StreamDecoder,
    continued,
    generate,
    generate_batch,
    generate_text,
    speed_here,
)
from pythia_export.runtime.cache import aligned_zeros

source, tokenizer, artifact, session = fixtures.source, fixtures.tokenizer, fixtures.artifact, fixtures.session

# Session


def test_prefill_is_what_hugging_face_computes(session: Session, source) -> None:
    ids = tokens(2, 12)
    logits = session.logits(ids)
    assert logits.shape == (2, 12, VOCAB) and logits.dtype == np.float32
    with torch.no_grad():
        assert close(logits, source[1](torch.from_numpy(ids)).logits.numpy(), ROUNDING[session.kv_dtype.name])


def test_steps_of_any_size_continue_the_prefill(session: Session) -> None:
    ids = tokens(1, 14)
    whole = session.logits(ids)
    cache = session.start(1, 20)
    pieces = [session.step(cache, ids[:, a:b]) for a, b in ((0, 5), (5, 6), (6, 7), (7, 12), (12, 14))]
    assert cache.length == 14
    assert close(np.concatenate(pieces, 1), whole)


def test_what_a_step_reads_is_kept_where_the_binding_keeps_nothing(session: Session) -> None:
    """ONNX Runtime's binding of before 1.32: the memory of a bound array was freed before it was read."""
    cache, bound = session.start(1, 20), {}

    def bind(name: str, value: onnxruntime.OrtValue) -> None:
        cache.binding._iobinding.bind_ortvalue_input(name, value._ortvalue)
        bound[name] = weakref.ref(value)

    cache.binding.bind_ortvalue_input = bind
    for step in (tokens(1, 6), tokens(1, 1), tokens(1, 1), tokens(1, 3)):
        session.step(cache, step)
        gc.collect()
        assert {"input_ids", "position_ids", "attention_mask"} <= bound.keys()
        assert [name for name, value in bound.items() if value() is None] == []


def test_a_row_of_a_left_padded_batch_is_that_row_alone(session: Session) -> None:
    lengths, steps = (9, 4, 1), 5
    prompts, later = tokens(3, 9), tokens(3, steps, seed=1)
    mask = np.array([[0] * (9 - n) + [1] * n for n in lengths])
    cache = session.start(3, 9 + steps)
    batch = [session.step(cache, prompts, mask)[:, -1:]]
    batch += [session.step(cache, later[:, t : t + 1]) for t in range(steps)]
    assert cache.mask.sum(1).tolist() == [n + steps for n in lengths]
    for row, n in enumerate(lengths):
        alone = session.logits(np.concatenate([prompts[row : row + 1, 9 - n :], later[row : row + 1]], 1))
        # A float16 in the cache may be the next one: older runtimes sum in another order, alone and in a batch.
        rounding = 2e-4 if session.kv_dtype == np.float16 else 2e-5
        assert close(np.concatenate(batch, 1)[row], alone[0, n - 1 :], rounding)


def test_logits_of_the_last_token_alone_are_those_among_all(session: Session) -> None:
    for rows in (1, 2):
        ids = tokens(rows, 9)
        everything = session.logits(ids)
        cache = session.start(rows, 12)
        alone = session.step(cache, ids, keep=1)
        assert alone.shape == (rows, 1, VOCAB) and close(alone, everything[:, -1:])
        some = session.step(session.start(rows, 12), ids, keep=4)
        assert some.shape == (rows, 4, VOCAB) and close(some, everything[:, -4:])
    assert session.logits(ids).shape == (2, 9, VOCAB)  # the next call gives all again


def test_logits_of_a_step_are_not_overwritten_by_the_next(session: Session) -> None:
    cache = session.start(1, 8)
    first = session.step(cache, tokens(1, 4))
    copy = first.copy()
    session.step(cache, tokens(1, 4, seed=1))
    assert (first == copy).all()


def test_a_shared_cache_is_one_buffer_from_first_to_last(artifact: Artifact, session: Session) -> None:
    if session.kv_cache != "shared":
        pytest.skip("this graph's cache grows")
    cache = session.start(2, 16)
    before = {name: value.data_ptr() for name, value in cache.values.items()}
    session.step(cache, tokens(2, 5))
    session.step(cache, tokens(2, 1))
    assert {name: value.data_ptr() for name, value in cache.values.items()} == before
    for value in cache.values.values():
        held = value.numpy()  # [B, heads, max_len, head_dim], or scales [B, heads, max_len]
        assert held.shape[2] == 16
        held = held.reshape(*held.shape[:3], -1)
        assert np.abs(held[:, :, :6]).sum(-1).all() and not held[:, :, 6:].any()


def test_a_cache_lies_on_whole_lines_of_the_processors_own(session: Session) -> None:
    for rows in (1, 2, 3):
        starts = [value.data_ptr() % 64 for value in session.start(rows, 17).values.values()]
        assert not any(starts), starts


def test_native_kernels_and_the_function_agree_whatever_the_cache(artifact: Artifact, session: Session) -> None:
    """The one artifact at its two speeds: a prompt, then decoding, both in a buffer with room to spare."""
    assert (session.speed, session.why) == speed_here(artifact)
    if session.speed != "native":
        pytest.skip(session.why)
    function = Session.open(artifact, threads=1, native=False)
    assert function.speed == "function"
    prompt, mask, later = tokens(2, 9), np.ones((2, 9), np.int64), tokens(2, 3, seed=1)
    mask[1, :4] = 0
    outputs = []
    for opened in (session, function):
        cache = opened.start(2, 20)
        steps = [opened.step(cache, prompt, mask), *(opened.step(cache, later[:, t : t + 1]) for t in range(3))]
        outputs.append(np.concatenate(steps, 1)[np.pad(mask, ((0, 0), (0, 3)), constant_values=1) > 0])
    # A code that float32's last digit rounds the other way is one in 127 of one number.
    assert close(*outputs, {"float32": 1e-5, "float16": 2e-4, "int8": 2e-3}[session.kv_dtype.name])


@pytest.mark.parametrize("rows", [10**10, 10**16])
def test_a_cache_that_no_memory_holds_is_an_error_with_its_size(rows: int, session: Session) -> None:
    if session.kv_cache != "shared":
        pytest.skip("this graph's cache grows")
    with pytest.raises(ResourceError, match=r"no memory for a KV cache of [\d,]{15,} bytes"):
        session.start(rows, 48)


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_a_large_cache_takes_the_memory_that_is_written() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = aligned_zeros((32, 1 << 20), np.float32)  # 128 MB
    cache[:, :16] = 1
    assert resident() - before < 8 << 20
    assert cache[:, 16:].sum() == 0


def test_two_caches_of_one_session_do_not_mix(session: Session) -> None:
    a, b = tokens(1, 8), tokens(1, 8, seed=1)
    first, second = session.start(1, 8), session.start(1, 12)
    interleaved = []
    for t in range(0, 8, 4):
        interleaved.append(session.step(first, a[:, t : t + 4]))
        session.step(second, b[:, t : t + 4])
    assert close(np.concatenate(interleaved, 1), session.logits(a))


def test_what_does_not_fit_is_refused_with_its_counts(session: Session) -> None:
    with pytest.raises(RecipeError, match="49 tokens .* 48 positions"):
        session.start(1, 49)
    with pytest.raises(RecipeError, match="49 tokens .* 48 positions"):
        session.logits(tokens(1, 49))
    cache = session.start(1, 8)
    session.step(cache, tokens(1, 6))
    with pytest.raises(RecipeError, match="room for 8 tokens and holds 6; 3 more"):
        session.step(cache, tokens(1, 3))
    session.step(cache, tokens(1, 2))
    assert session.logits(tokens(1, 48)).shape[1] == 48


def test_ids_and_masks_that_make_no_sense_are_refused(session: Session) -> None:
    good = tokens(2, 3)
    for bad, message in [
        (good.astype(np.int32), "int64"),
        (good[0], "shape"),
        (good[:, :0], "cache of 2 rows of 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            session.logits(bad)
    for mask in (np.ones((2, 4), int), np.full((2, 3), 2), np.array([[1, 1, 1], [0, 0, 0]])):
        with pytest.raises(ValueError, match="mask|padding alone"):
            session.logits(good, mask)
    with pytest.raises(ValueError, match=r"\[1, 1 or more\]"):
        session.step(session.start(1, 8), good)
    for outside in (VOCAB, -1):
        with pytest.raises(IntegrityError, match="vocabulary is 0 to 299"):
            session.logits(np.array([[1, outside]]))


def test_opening_is_timed_and_on_the_cpu(session: Session) -> None:
    assert 0 < session.load_seconds < 60
    assert session.providers == ["CPUExecutionProvider"]


def test_another_accuracy_level_runs_from_bytes_beside_the_published_weights(source, tokenizer, tmp_path: Path) -> None:
    export = Export(accuracy_level=4)
    exported = export_and_publish(source[0], tokenizer, tmp_path / "out", export, Quantize(**QUANTIZE))
    artifact, ids = Artifact.open(tmp_path / "out"), tokens(2, 12)
    with pytest.raises(ValueError, match="level 0 needs model_bytes"):
        Session.open(artifact, accuracy_level=0)
    exact = with_accuracy_level(exported.model, 0).SerializeToString()
    shipped = Session.open(artifact, threads=1, accuracy_level=4).logits(ids)
    level0 = Session.open(artifact, threads=1, accuracy_level=0, model_bytes=exact).logits(ids)
    unpublished = Session(exact, artifact.folder, artifact.config, kv_cache="shared", threads=1).logits(ids)
    assert (level0 == unpublished).all()
    difference = np.abs(shipped - level0).max() / np.abs(level0).max()
    assert 1e-4 < difference < 0.1  # activations in int8: another result, and not a wrong one


def test_a_graph_that_is_not_the_configurations_is_refused(artifact: Artifact) -> None:
    from dataclasses import replace

    model = artifact.file("model.onnx")
    three = replace(artifact.config, num_layers=3)
    with pytest.raises(IntegrityError, match=r"3-layer .* missing past_key_values\.2\.key"):
        Session(model, artifact.folder, three, kv_cache="shared")
    with pytest.raises(IntegrityError, match="not a graph that can be read"):
        Session(model.read_bytes()[:500], artifact.folder, artifact.config, kv_cache="shared")
    with pytest.raises(IntegrityError, match=r"model\.onnx_data"):
        Session(model, artifact.folder.parent, artifact.config, kv_cache="shared")
    with pytest.raises(IntegrityError, match="kv_cache 'paged'"):
        Session(model, artifact.folder, artifact.config, kv_cache="paged")


def test_cuda_that_is_not_there_is_an_error_and_not_the_cpu(source, tokenizer, tmp_path: Path, capfd) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    export = Export(target="cuda", rotary="onnx")
    export_and_publish(source[0], tokenizer, tmp_path / "out", export, Quantize(method="none"))
    artifact = Artifact.open(tmp_path / "out")
    with pytest.raises(EnvironmentProblem, match="CUDA") as caught:
        Session.open(artifact)
    assert "choose the CPU explicitly" in caught.value.hint
    assert capfd.readouterr() == ("", "")  # the message has it all
    assert Session.open(artifact, provider="cpu").logits(tokens(1, 4)).shape == (1, 4, VOCAB)


# Without torch; with two ONNX Runtimes


def python(script: str, *path: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_opening_checking_and_running_import_neither_torch_nor_transformers_nor_onnx(artifact: Artifact) -> None:
    script = f"""
        import sys
        from pythia_export.artifact import Artifact
        from pythia_export.runtime import Session, generate_text
        artifact = Artifact.open({str(artifact.folder)!r})
        artifact.check()
        "".join(generate_text(Session.open(artifact), artifact.tokenizer(), "the cat", 4))
        print([name for name in ("torch", "transformers", "onnx") if name in sys.modules])
    """
    assert python(script) == "[]"


def test_two_distributions_of_onnx_runtime_are_explained(artifact: Artifact, tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    script = f"""
        from pythia_export.artifact import Artifact
        from pythia_export.base.errors import EnvironmentProblem
        from pythia_export.runtime import Session
        try:
            Session.open(Artifact.open({str(artifact.folder)!r}))
        except EnvironmentProblem as e:
            print(e, e.hint)
    """
    said = python(script, tmp_path)
    assert said.startswith("both onnxruntime and onnxruntime-gpu are installed")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in said


def test_a_gutted_onnx_runtime_is_explained(tmp_path: Path) -> None:
    """Uninstalling one of two leaves a package without its insides."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from pythia_export.base.errors import EnvironmentProblem
        from pythia_export.runtime.onnxruntime import onnxruntime
        try:
            onnxruntime()
        except EnvironmentProblem as e:
            print(e, e.hint)
    """
    assert "broken" in python(script) and "--force-reinstall" in python(script)


@pytest.mark.parametrize(
    "insides", ["__version__ = '1.21.1'; InferenceSession = None", "raise AttributeError('_ARRAY_API')"]
)
def test_an_onnx_runtime_that_is_too_old_or_cannot_be_imported_is_explained(insides: str, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(insides)
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from pythia_export.base.errors import EnvironmentProblem
        from pythia_export.runtime.onnxruntime import onnxruntime
        try:
            onnxruntime()
        except EnvironmentProblem as e:
            print(e, e.hint)
    """
    said = python(script)
    wanted = "ONNX Runtime 1.21.1 is installed; 1.24 or newer is needed pip install --upgrade"
    assert said.startswith(wanted if "1.21" in insides else "ONNX Runtime cannot be imported: _ARRAY_API")


def test_peak_memory_is_this_process_and_not_its_parent() -> None:
    block = np.ones(300_000_000, np.uint8)  # resident here, in the parent
    script = """
        import numpy as np
        from pythia_export.runtime import peak_memory_bytes
        before = peak_memory_bytes()
        block = np.ones(200_000_000, np.uint8)
        print(before, peak_memory_bytes())
    """
    before, after = map(int, python(script).split())
    assert 10_000_000 < before < block.nbytes and after >= before + 150_000_000


# Generation


def hugging_face_greedy(model, prompt: Sequence[int], count: int) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False, pad_token_id=0, use_cache=True
        )
    ids = out[0, len(prompt) :].tolist()
    return ids[: ids.index(0)] if 0 in ids else ids


def test_greedy_is_hugging_faces_greedy(session: Session, tokenizer: Tokenizer, source) -> None:
    if session.kv_dtype != "float32":
        pytest.skip("a cache that rounds may choose another token; its logits are compared above")
    prompt = tokens(1, 7)[0].tolist()
    assert list(generate(session, tokenizer, prompt, 30)) == hugging_face_greedy(source[1], prompt, 30)


def test_several_prompts_give_what_each_gives_alone(session: Session, tokenizer: Tokenizer) -> None:
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 11, 1, 7)]
    for sampling in (Sampling(), Sampling(0.7, top_k=20, top_p=0.95, seed=3)):
        rows = generate_batch(session, tokenizer, prompts, 20, sampling)
        assert rows[:1] == generate_batch(session, tokenizer, prompts[:1], 20, sampling)
        if sampling.temperature == 0:
            assert rows == [list(generate(session, tokenizer, prompt, 20)) for prompt in prompts]


def test_a_seed_repeats_a_sample(session: Session, tokenizer: Tokenizer) -> None:
    def sample(seed: int) -> list[int]:
        return list(generate(session, tokenizer, [5, 6], 20, temperature=1.0, seed=seed))

    assert sample(1) == sample(1) != sample(2)


def test_it_ends_at_eos_which_is_not_yielded(tokenizer: Tokenizer) -> None:
    session = scripted(tokenizer, "the cat")
    assert list(generate(session, tokenizer, [1], 20)) == tokenizer.encode("the cat").ids


def test_a_row_that_ended_leaves_and_others_go_on(tokenizer: Tokenizer) -> None:
    """The one before it and the one behind it: each is still fed its own tokens."""
    texts = ["the cat sat on", "the", "the dog sat on the log"]
    session = scripted(tokenizer, *texts)
    assert generate_batch(session, tokenizer, [[1, 2], [1], [3]], 20) == [tokenizer.encode(text).ids for text in texts]
    assert [len(ids) for ids in session.fed[:4]] == [3, 3, 2, 2] and len(session.fed[-1]) == 1


def test_pieces_are_each_token_with_its_text_and_an_end(tokenizer: Tokenizer) -> None:
    found = list(continued(scripted(tokenizer, "the cat", "the"), tokenizer, [[1], [1]], 20, stop=["at ", "dog"]))
    assert [piece.text for piece in found if piece.row == 0] == ["the", " c", "at"]
    assert [piece.token for piece in found if piece.row == 0][-1] is None
    assert [piece for piece in found if piece.row == 1] == [(1, tokenizer.encode("the").ids[0], "the"), (1, None, "")]


def test_the_count_is_exact_and_the_last_token_is_not_fed(tokenizer: Tokenizer) -> None:
    session = scripted(tokenizer, "the cat sat on the mat")
    assert len(list(generate(session, tokenizer, [1], 3))) == 3
    assert len(session.fed) == 3


def test_stop_strings_end_it_and_are_not_shown(tokenizer: Tokenizer) -> None:
    text = "the cat sat on the mat"
    shown = list(generate_text(scripted(tokenizer, text), tokenizer, "x", 40, stop=["at o", "mat"]))
    assert "".join(shown) == "the cat s"
    ids = list(generate(scripted(tokenizer, text), tokenizer, [1], 40, stop=["at o"]))
    assert "at o" in tokenizer.decode(ids) and "at o" not in tokenizer.decode(ids[:-1])
    begun_only = generate_text(scripted(tokenizer, text), tokenizer, "x", 40, stop=["mats"])
    assert "".join(begun_only) == text


def test_text_is_streamed_and_not_kept_to_the_end(tokenizer: Tokenizer) -> None:
    text = "the cat sat on the mat"
    assert len(list(generate_text(scripted(tokenizer, text), tokenizer, "x", 40))) == len(tokenizer.encode(text).ids)


def test_requests_that_cannot_be_met_are_refused_on_the_call(session: Session, tokenizer: Tokenizer) -> None:
    with pytest.raises(RecipeError, match="40 tokens and 9 new ones make 49; this model has 48") as caught:
        generate(session, tokenizer, [1] * 40, 9)
    assert "at most 8" in caught.value.hint
    for prompt, count, message in [([], 5, "empty prompt"), ([1], 0, "max_new_tokens 0")]:
        with pytest.raises(RecipeError, match=message):
            generate(session, tokenizer, prompt, count)
    with pytest.raises(RecipeError, match="no effect"):
        generate(session, tokenizer, [1], 5, top_k=5)
    with pytest.raises(RecipeError, match="empty stop"):
        generate(session, tokenizer, [1], 5, stop=[""])
    with pytest.raises(RecipeError, match="empty prompt"):
        generate_text(session, tokenizer, "", 5)
    assert len(list(generate(session, tokenizer, [1] * 40, 8))) <= 8


# Streaming decoder


def pieces(decoder: StreamDecoder, ids: Sequence[int]) -> Iterator[str]:
    for token in ids:
        yield decoder.push(token)
    yield decoder.finish()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_pieces_are_the_tokenizers_own_decoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any ids at all: half characters, bytes that are not UTF-8, special tokens, ids that no token has."""
    ids = data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=30))
    assert "".join(pieces(StreamDecoder(tokenizer), ids)) == tokenizer.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "?")
    parts = list(pieces(StreamDecoder(tokenizer), tokenizer.encode(text).ids))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@settings(max_examples=200, deadline=None)
@given(st.text("ab é", max_size=20), st.lists(st.text("ab é", min_size=1, max_size=4), max_size=3))
def test_text_is_cut_before_the_stop_string_that_is_complete_first(tokenizer, text: str, stop: list[str]) -> None:
    decoder, ids = StreamDecoder(tokenizer, stop), tokenizer.encode(text).ids
    expected = text
    for n in range(len(text) + 1):  # letter by letter, however many of them a token has
        if found := [text[:n].index(s) for s in stop if s in text[:n]]:
            expected = text[: min(found)]
            break
    assert "".join(pieces(decoder, ids)) == expected
    assert decoder.stopped == any(s in text for s in stop)


def test_what_might_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer, ["###"])
    one = tokenizer.encode("#").ids
    assert [decoder.push(token) for token in (*one, *one)] == ["", ""]
    assert decoder.push(tokenizer.encode("x").ids[0]) == "##x"
    assert [decoder.push(token) for token in one * 3] == ["", "", ""]
    assert decoder.stopped and decoder.finish() == ""


@pytest.mark.parametrize(
    ("stop", "shown"), [(["e", "h"], " t"), (["the", "h"], " t"), (["he", "e"], " t"), (["h", "th"], " ")]
)
def test_of_stop_strings_in_one_token_the_first_to_end_cuts(tokenizer: Tokenizer, stop, shown) -> None:
    the = tokenizer.token_to_id("Ġthe")
    decoder = StreamDecoder(tokenizer, stop)
    assert decoder.push(the) == shown and decoder.stopped


def test_a_plain_str_is_one_stop_string_and_not_its_letters(tokenizer: Tokenizer) -> None:
    text = "the cat sat on the mat"
    assert "".join(generate_text(scripted(tokenizer, text), tokenizer, "x", 40, stop="at o")) == "the cat s"


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(SourceError, match="ByteLevel"):
        StreamDecoder(Tokenizer(models.BPE()))
