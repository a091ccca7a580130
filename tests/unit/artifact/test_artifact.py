"""An artifact is whole or absent, whatever happens to the process that writes it; and it knows its own bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from places import ROOT, SUPPORT

from pythia_export.artifact import Artifact, Staging
from pythia_export.artifact import publish as module
from pythia_export.base.errors import IntegrityError, OutputError, ResourceError, SourceError
from pythia_export.disk import held
from pythia_export.model.neox import NeoXConfig
from pythia_export.records.manifest import Origin

CONFIG = NeoXConfig(vocab_size=64, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
MANIFEST = {
    "versions": {"pythia-export": "0"},
    "source": {"name": "demo", "revision": "main", "commit": "sha256:" + "0" * 64},
    "recipe": {"model": {"id": "demo"}, "quantize": {"method": "none"}, "verify": {"source": "python-stdlib"}},
    "calibration": None,
    "layout": {"kv_cache": "shared", "kv_dtype": "float32"},
}
ORIGIN = Origin.model_validate(MANIFEST)


def write(out: Path, text: str = "old", overwrite: bool = False) -> Artifact:
    with Staging(out, overwrite) as staging:
        write_into(staging, text)
    return Artifact.open(out)


def write_into(staging: Staging, text: str = "old") -> None:
    (staging.folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (staging.folder / "model.onnx_data").write_bytes(b"\0" * 5000)
    (staging.folder / "model.onnx").write_text(text)
    staging.publish(ORIGIN)


def content(out: Path) -> str:
    found = Artifact.open(out)
    found.check()
    return (found.folder / "model.onnx").read_text()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def edit_manifest(out: Path, **changes: object) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | changes))


# Publishing


def test_a_published_artifact_opens_and_describes_every_file(tmp_path: Path) -> None:
    found = write(tmp_path / "deep" / "er" / "out")
    assert names(found.folder) == ["config.json", "manifest.json", "model.onnx", "model.onnx_data"]
    assert names(found.folder.parent) == ["out"]
    assert list(found.manifest.files) == ["config.json", "model.onnx", "model.onnx_data"]
    assert found.manifest.files["model.onnx_data"].size == 5000
    assert found.manifest.version == 1 and found.manifest.created.endswith("Z")
    assert found.config == CONFIG and found.recipe.model.name == "demo"
    found.check()


def test_others_may_read_what_is_published(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        assert write(tmp_path / "out").folder.stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(umask)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_leaving_without_publish_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Staging(tmp_path / "out") as staging:
        (staging.folder / "model.onnx").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_overwrite_replaces_and_removes_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "out")
    write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


def test_a_failed_overwrite_keeps_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(RuntimeError), Staging(tmp_path / "out", overwrite=True) as staging:
        (staging.folder / "model.onnx").write_text("half")
        raise RuntimeError
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_overwrite_where_the_system_cannot_exchange_two_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "exchange", lambda a, b: False)
    write(tmp_path / "out")
    write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]

    rename = os.rename

    def second_fails(a: Path, b: Path) -> None:
        if ".tmp-" in Path(a).name:
            raise PermissionError("no")
        rename(a, b)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OutputError, match="no"):
        write(tmp_path / "out", "newer", overwrite=True)
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the atomic exchange is Linux's renameat2")
def test_linux_exchanges_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "was").write_text(name)
    if not module.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system or C library has no RENAME_EXCHANGE")
    assert (tmp_path / "a" / "was").read_text() == "b"


def test_nested_files_are_in_the_manifest_and_links_are_refused(tmp_path: Path) -> None:
    with Staging(tmp_path / "out") as staging:
        (staging.folder / "onnx").mkdir()
        (staging.folder / "onnx" / "model.onnx").write_text("x")
        staging.publish(ORIGIN)
    assert list(Artifact.open(tmp_path / "out").manifest.files) == ["onnx/model.onnx"]

    (tmp_path / "blob").write_text("x")
    with pytest.raises(OutputError, match="model.onnx is a symbolic link"), Staging(tmp_path / "other") as staging:
        (staging.folder / "model.onnx").symlink_to(tmp_path / "blob")
        staging.publish(ORIGIN)
    assert names(tmp_path) == ["blob", "out"]


# What `out` may be; refused on construction, before any work


def test_an_existing_output_needs_overwrite(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(OutputError, match="exists") as caught:
        Staging(tmp_path / "out")
    assert "--overwrite" in caught.value.hint
    assert content(tmp_path / "out") == "old"


def test_peoples_data_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("years of work")
    for foreign_manifest in (None, '{"manifest_version": 3}', "not json"):
        if foreign_manifest is not None:
            (out / "manifest.json").write_text(foreign_manifest)
        with pytest.raises(OutputError, match="chapter1.tex"):
            Staging(out, overwrite=True)
    assert (out / "chapter1.tex").read_text() == "years of work"


def test_a_file_that_someone_put_into_an_artifact_is_not_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path / "out").folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="notes.txt"):
        Staging(folder, overwrite=True)
    (folder / "notes.txt").unlink()
    write(folder, "new", overwrite=True)


def test_data_that_appears_while_the_artifact_is_made_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for overwrite in (False, True):
        with pytest.raises(OutputError), Staging(out, overwrite) as staging:
            out.mkdir()
            (out / "precious").write_text("x")
            staging.publish(ORIGIN)
        assert names(tmp_path) == ["out"] and names(out) == ["precious"]
        (out / "precious").unlink()
        out.rmdir()


def test_an_empty_directory_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path / "out") == "new"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_a_file_or_a_place_below_a_file_is_refused(tmp_path: Path, overwrite: bool) -> None:
    target = write(tmp_path / "target").folder
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    for name, message in [
        ("link", "symbolic link to .*target"),
        ("dangling", "symbolic link"),
        ("file", "is a file"),
        ("file/out", "file is not a directory"),
        ("file/deeper/out", "file is not a directory"),
        ("dangling/out", "dangling is not a directory"),
    ]:
        with pytest.raises(OutputError, match=message):
            Staging(tmp_path / name, overwrite)
    assert names(tmp_path) == ["dangling", "file", "link", "target"]
    assert content(target) == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_a_read_only_parent_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            Staging(tmp_path / "out")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that even root cannot write")
def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"/proc/\S+"), Staging(Path("/proc/self/out")):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no space left"), Staging(tmp_path / "out"), open("/dev/full", "wb") as f:
        f.write(b"x" * 100_000)
    assert names(tmp_path) == []


# Killed


def run_and_kill(tmp_path: Path, body: str, how: signal.Signals = signal.SIGKILL) -> int:
    """Run `body` in a process of its own until it says "now", then kill it; return its process id."""
    script = f"""
        import json, os, sys, time
        from pathlib import Path
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(SUPPORT)!r}]
        from test_artifact import MANIFEST, module, write, Staging, Artifact
        out = Path({str(tmp_path)!r}) / "out"
        def now(*_):
            print("now", flush=True)
            time.sleep(60)
    """
    root = str(ROOT)
    environment = os.environ | {"PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        env=environment,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"now\n"
        child.send_signal(how)
        child.wait(timeout=30)
        return child.pid


@pytest.mark.parametrize(
    "moment",
    [
        "module.describe = now  # files are written, the manifest is not",
        "module.fsync = now  # the manifest is written",
        "module.exchange = now  # everything is on the disk, the rename is next",
        "module.exchange = lambda a, b: False; os.rename = now  # before the old one is moved aside",
    ],
)
def test_killed_before_the_rename_the_old_one_stays(tmp_path: Path, moment: str) -> None:
    write(tmp_path / "out")
    run_and_kill(tmp_path, f'{moment}\nwrite(out, "new", overwrite=True)')
    assert content(tmp_path / "out") == "old"
    assert len(names(tmp_path)) == 3  # the old one, the staging directory and the lock
    write(tmp_path / "out", "newer", overwrite=True)
    assert content(tmp_path / "out") == "newer"
    assert names(tmp_path) == ["out"]


def test_killed_after_the_rename_the_new_one_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "out")
    run_and_kill(tmp_path, 'module.shutil.rmtree = now\nwrite(out, "new", overwrite=True)')
    assert content(tmp_path / "out") == "new"
    write(tmp_path / "out", "newer", overwrite=True)
    assert names(tmp_path) == ["out"]


def test_killed_between_two_renames_the_next_run_puts_the_old_one_back(tmp_path: Path) -> None:
    write(tmp_path / "out")
    body = """
        module.exchange = lambda a, b: False
        rename = os.rename
        os.rename = lambda a, b: now() if ".tmp-" in Path(a).name else rename(a, b)
        write(out, "new", overwrite=True)
    """
    run_and_kill(tmp_path, body)
    with pytest.raises(SourceError) as caught:
        Artifact.open(tmp_path / "out")
    assert ".out.old-" in caught.value.hint
    with pytest.raises(OutputError, match="exists"), Staging(tmp_path / "out"):
        pass
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_killed_without_an_old_one_nothing_carries_the_name(tmp_path: Path) -> None:
    run_and_kill(tmp_path, "module.fsync = now\nwrite(out)")
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_sigterm_cleans_up_at_once(tmp_path: Path) -> None:
    write(tmp_path / "out")
    run_and_kill(tmp_path, 'module.fsync = now\nwrite(out, "new", overwrite=True)', signal.SIGTERM)
    assert names(tmp_path) == ["out"]
    assert content(tmp_path / "out") == "old"


def test_sigterm_means_after_what_it_meant_before(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_living_process_keeps_its_staging_directory(tmp_path: Path) -> None:
    living = tmp_path / f".out.tmp-{os.getppid()}-00000000"
    living.mkdir()
    dead = tmp_path / f".out.tmp-{run_and_kill(tmp_path, 'now()')}-00000000"
    dead.mkdir()
    other_name = tmp_path / f".out2.tmp-{dead.name.split('-')[1]}-00000000"
    other_name.mkdir()
    write(tmp_path / "out")
    assert living.is_dir() and other_name.is_dir()
    assert not dead.exists()


# One writer at a time


def test_a_second_writer_is_refused_before_any_work_and_told_who_holds_the_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for there in (False, True):
        with Staging(out, overwrite=True) as staging:
            if there:
                write_into(staging)
            with pytest.raises(OutputError, match=rf"out: process {os.getpid()} on .* is writing there"):
                Staging(out, overwrite=True).__enter__()
            with pytest.raises(OutputError, match=f"process {os.getpid()}"), held(out):
                pass
    assert names(tmp_path) == ["out"]


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    run_and_kill(tmp_path, "from pythia_export.disk import held\nwith held(out): now()")
    assert names(tmp_path) == [".out.lock"]
    with held(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_where_nothing_can_be_written_beside_it_the_directory_itself_is_held(tmp_path: Path, monkeypatch) -> None:
    out = write(tmp_path / "out").folder
    monkeypatch.setattr("pythia_export.disk.lock._lock_file", lambda path: None)
    with held(out), pytest.raises(OutputError, match="another process is writing there"), held(out):
        pass


def test_what_replaced_an_artifact_keeps_its_own_manifest(tmp_path: Path) -> None:
    """Where there are no locks, or somebody copied another artifact there."""
    opened = write(tmp_path / "out")
    write(tmp_path / "out", "new", overwrite=True)
    with pytest.raises(OutputError, match="replaced since it was opened"):
        opened.replace_files({"parity.json": b"{}"})
    with pytest.raises(SourceError, match="replaced while it was read"):
        opened.require_unchanged()
    assert content(tmp_path / "out") == "new"
    opened.check()  # whoever reads goes on with what is there
    assert opened.manifest == Artifact.open(tmp_path / "out").manifest


@pytest.mark.parametrize("full", range(1, 4))
def test_a_full_disk_keeps_the_earlier_files(tmp_path: Path, full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full at the first file, at the second, and at the manifest."""
    found = write(tmp_path / "out")
    found.replace_files({"parity.json": b"1", "README.md": b"old"})
    write_bytes, calls = Path.write_bytes, []

    def fails(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) == full:
            write_bytes(path, data[:1])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="no space left"):
        patch.setattr(Path, "write_bytes", fails)
        found.replace_files({"parity.json": b"2", "README.md": b"newer"})
    found = Artifact.open(found.folder)
    found.check()
    assert found.file("parity.json").read_bytes() == b"1" and found.file("README.md").read_bytes() == b"old"
    assert len(names(found.folder)) == 6


def test_who_reads_while_files_are_replaced_sees_the_old_ones_or_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each write to the disk of the writer: another opening and checking, and one that began before it."""
    found = write(tmp_path / "out")
    found.replace_files({"parity.json": b"1", "README.md": b"old"})
    fsync, early, seen = os.fsync, Artifact.open(found.folder), []

    def looks(descriptor: int) -> None:
        fsync(descriptor)
        monkeypatch.setattr(os, "fsync", fsync)  # reading gives files their names as well
        for reader in (early, Artifact.open(found.folder)):
            reader.check()
            seen.append(tuple(reader.file(name).read_bytes() for name in ("parity.json", "README.md")))
        monkeypatch.setattr(os, "fsync", looks)

    monkeypatch.setattr(os, "fsync", looks)
    found.replace_files({"parity.json": b"22", "README.md": b"newer"})
    assert set(seen) == {(b"1", b"old"), (b"22", b"newer")} and len(seen) >= 12


def test_an_artifact_whose_bytes_have_a_second_name_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(OutputError, match="hard link"), Staging(tmp_path / "out") as staging:
        os.link(tmp_path / "mine", staging.folder / "model.onnx")
        staging.publish(ORIGIN)


def test_a_dead_process_that_had_our_id_is_told_by_its_lock(tmp_path: Path) -> None:
    """In a container every run has the same few process ids."""
    stale = tmp_path / f".out.tmp-{os.getpid()}-00000000"
    stale.mkdir()
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


# Opening


def test_what_is_no_artifact_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: no such directory"):
        Artifact.open(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no manifest.json"):
        Artifact.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="is not a directory"):
        Artifact.open(tmp_path / "file")


def test_a_manifest_of_another_schema_or_shape_is_refused(tmp_path: Path) -> None:
    out = write(tmp_path / "out").folder
    good = (out / "manifest.json").read_bytes()
    edit_manifest(out, schema=2)
    with pytest.raises(SourceError, match="schema 2; .* reads schema 1"):
        Artifact.open(out)
    (out / "manifest.json").write_bytes(good[: len(good) // 2])
    with pytest.raises(IntegrityError, match="not JSON"):
        Artifact.open(out)
    for text in ("[]", "{}", '{"schema": 1}', '{"schema": 1, "files": {"a": {}}}'):
        (out / "manifest.json").write_text(text)
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            Artifact.open(out)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "", ".", "..\\secret", "C:secret", "./model.onnx", "a//b"]
)
def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    out = write(tmp_path / "out").folder
    edit_manifest(out, files={name: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(IntegrityError, match="outside the artifact"):
        Artifact.open(out)


def test_a_link_out_of_the_artifact_is_refused(tmp_path: Path) -> None:
    found = write(tmp_path / "out")
    (found.folder / "model.onnx").rename(tmp_path / "model.onnx")
    (found.folder / "model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(IntegrityError, match="model.onnx: a symbolic link"):
        Artifact.open(found.folder)


def test_missing_and_truncated_files_are_found_on_opening_all_of_them(tmp_path: Path) -> None:
    out = write(tmp_path / "out").folder
    (out / "model.onnx").unlink()
    (out / "model.onnx_data").write_bytes(b"\0" * 4999)
    with pytest.raises(IntegrityError) as caught:
        Artifact.open(out)
    assert "model.onnx: missing" in str(caught.value)
    assert "model.onnx_data: 4,999 bytes; the manifest says 5,000" in str(caught.value)


def test_check_names_every_file_with_a_changed_byte(tmp_path: Path) -> None:
    found = write(tmp_path / "out")
    with (found.folder / "model.onnx_data").open("r+b") as f:
        f.seek(2500)
        f.write(b"\1")
    (found.folder / "model.onnx").write_text("OLD")
    with pytest.raises(IntegrityError) as caught:
        Artifact.open(found.folder).check()
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["model.onnx", "model.onnx_data"]


def test_an_artifact_behind_a_link_and_under_a_relative_path_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "run5")
    (tmp_path / "latest").symlink_to("run5")
    Artifact.open(tmp_path / "latest").check()
    monkeypatch.chdir(tmp_path / "run5")
    Artifact.open(".").check()


def test_files_that_the_manifest_does_not_name_or_that_are_not_what_they_say(tmp_path: Path) -> None:
    with Staging(tmp_path / "out") as staging:
        (staging.folder / "tokenizer.json").write_text("{}")
        (staging.folder / "quantization.json").write_text("{")
        staging.publish(ORIGIN)
    found = Artifact.open(tmp_path / "out")
    with pytest.raises(IntegrityError, match="not a tokenizer"):
        found.tokenizer()
    with pytest.raises(IntegrityError, match="quantization.json: not JSON"):
        found.read_json("quantization.json")
    with pytest.raises(IntegrityError, match="names no config.json"):
        _ = found.config


@pytest.mark.parametrize("name", ["quantization.json", "parity.json"])
def test_a_record_that_lacks_its_parts_is_named(tmp_path: Path, name: str) -> None:
    with Staging(tmp_path / "out") as staging:
        (staging.folder / name).write_text("{}")
        staging.publish(ORIGIN)
    with pytest.raises(IntegrityError, match=f"{name}: an object with a number `schema` was expected"):
        _ = getattr(Artifact.open(tmp_path / "out"), name.partition(".")[0])


@pytest.mark.parametrize("source", [{}, {"name": "m"}, {"name": "m", "commit": 3}])
def test_a_manifest_whose_source_says_nothing_is_refused(tmp_path: Path, source: dict[str, object]) -> None:
    out = write(tmp_path / "out").folder
    edit_manifest(out, source=source)
    with pytest.raises(IntegrityError, match=r"`source\.(name|revision|commit)`"):
        Artifact.open(out)


# Replacing single files


def test_replaced_files_are_in_the_manifest(tmp_path: Path) -> None:
    found = write(tmp_path / "out")
    found.replace_files({"figures.json": b'{"passed": false}', "README.md": b"card"})
    found.replace_files({"figures.json": b'{"passed": true}'})
    again = Artifact.open(found.folder)
    again.check()
    assert again.manifest == found.manifest
    assert again.read_json("figures.json") == {"passed": True}
    assert "README.md" in again.manifest.files
    assert names(tmp_path) == ["out"] and len(names(found.folder)) == 6


@pytest.mark.parametrize("name", ["manifest.json", "../x", "/x", ""])
def test_only_files_of_the_artifact_can_be_replaced(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a file"):
        write(tmp_path / "out").replace_files({name: b""})


@pytest.mark.parametrize("call", range(1, 9))
def test_killed_while_replacing_the_artifact_has_the_old_files_or_the_new_ones(tmp_path: Path, call: int) -> None:
    """Killed before each write to the disk: two files with their directory, the manifest with it, and two renames."""
    found = write(tmp_path / "out")
    found.replace_files({"parity.json": b"1", "README.md": b"old"})
    body = f"""
        fsync, calls = os.fsync, []
        def count(descriptor):
            calls.append(descriptor)
            now() if len(calls) == {call} else fsync(descriptor)
        os.fsync = count
        Artifact.open(out).replace_files({{"parity.json": b"2", "README.md": b"newer"}})
    """
    run_and_kill(tmp_path, body)
    Staging(found.folder, overwrite=True)  # what was left is known as ours
    copied = shutil.copytree(found.folder, tmp_path / "copied")
    for folder in (copied, found.folder):
        found = Artifact.open(folder)
        found.check()
        proof = {name: found.file(name).read_bytes() for name in ("parity.json", "README.md")}
        assert proof == (
            {"parity.json": b"1", "README.md": b"old"} if call < 6 else {"parity.json": b"2", "README.md": b"newer"}
        )
        assert all((found.folder / name).read_bytes() == content for name, content in proof.items())  # for other tools
    found.replace_files({"parity.json": b"3", "README.md": b"newest"})
    assert len(names(found.folder)) == 6  # no temporary file is left
