# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.action.checkpoint_manifest import progress
from ansible_collections.sparkrig.serving.plugins.module_utils import _checkpoint_hashing, _manifest
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import (
    MANIFEST_FILE,
    Entry,
    Stat,
    compare,
    content_digest,
    hash_file,
    hash_files,
    manifest_text,
    parse_manifest,
    partial_name,
    size_text,
    unsafe_files,
)
from ansible_collections.sparkrig.serving.plugins.modules import checkpoint_fetch, checkpoint_manifest

SHA = "0" * 64
GOOD = {"size_bytes": 1, "mtime_ns": 2, "inode": 3, "sha256": SHA, "hashed_at": 4.0}
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
ENTRIES = st.builds(
    Entry,
    st.builds(Stat, st.integers(0, 2**60), st.integers(0, 2**62), st.integers(0, 2**62)),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.floats(0, 2e9),
    st.booleans(),
)


@given(st.dictionaries(NAMES, ENTRIES, max_size=4))
def test_a_manifest_says_what_was_written(entries: dict[str, Entry]) -> None:
    assert parse_manifest(manifest_text(entries), "m") == entries


@given(st.binary(max_size=100))
def test_any_bytes_are_a_manifest_or_one_sentence(text: bytes) -> None:
    try:
        parse_manifest(text, "m")
    except ValueError as error:
        assert str(error).startswith("m ")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"../x": GOOD}, "m names the file '../x', which does not lie below its folder; delete m"),
        ({"/x": GOOD}, "m names the file '/x', which does not lie below its folder; delete m"),
        ({"a//b": GOOD}, "m names the file 'a//b', which does not lie below its folder; delete m"),
        ({"a": 1}, "m: the entry of a is 1, which no manifest has; delete m"),
        ({"a": {**GOOD, "size_bytes": float("nan")}}, "m: the entry of a is "),
        ({"a": {**GOOD, "size_bytes": -1}}, "m: the entry of a is "),
        ({"a": {**GOOD, "sha256": "x" * 64}}, "m: the entry of a is "),
        ({"a": {**GOOD, "sha256": "0"}}, "m: the entry of a is "),
    ],
)
def test_bad_manifests(files: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        parse_manifest(json.dumps({"version": 1, "files": files}).encode(), "m")


@pytest.mark.parametrize("text", [b"[]", b'{"version": 2, "files": {}}', b'{"version": 1}'])
def test_other_versions(text: bytes) -> None:
    with pytest.raises(ValueError, match="^m is no manifest of version 1; delete it, it is made again$"):
        parse_manifest(text, "m")


def test_a_file_is_known_by_size_time_and_inode() -> None:
    entry = Entry(Stat(1, 2, 3), SHA, 0.0)
    seen = {
        "same": Stat(1, 2, 3),
        "size": Stat(2, 2, 3),
        "time": Stat(1, 3, 3),
        "inode": Stat(1, 2, 4),
        "new": Stat(1, 1, 1),
    }
    entries = {name: entry for name in ("same", "size", "time", "inode", "gone")}
    found = compare(seen, entries)
    assert found.known == ("same",)
    assert found.unknown == ("inode", "new", "size", "time")
    assert found.gone == ("gone",)
    assert compare({"same": Stat(1, 2, 3)}, {"same": Entry(Stat(1, 2, 3), SHA, 0.0, True)}).damaged == ("same",)


def test_digest_is_of_every_name_size_and_hash() -> None:
    digest = content_digest({"a": (1, SHA), "b": (2, SHA)})
    assert digest == content_digest({"b": (2, SHA), "a": (1, SHA)})
    assert len({digest, content_digest({"a": (1, SHA)}), content_digest({"a": (1, SHA), "b": (3, SHA)})}) == 3


def test_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    contents = {f"f{number}": os.urandom(number * 300_000) for number in range(7)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    told: list[str] = []
    done = hash_files(str(tmp_path), list(contents), 3, on_entry=lambda name, entry: told.append(name))
    assert {name: entry.sha256 for name, entry in done.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in contents.items()
    }
    assert sorted(told) == sorted(contents)


def test_a_file_that_changes_meanwhile_has_no_hash(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)

    def change(count: int) -> None:
        path.write_bytes(b"y" * 11)

    with pytest.raises(ValueError, match=r"f changed while it was hashed; wait until whoever writes it is done"):
        hash_file(str(path), change)


@pytest.mark.parametrize(
    ("name", "allowed", "unsafe"),
    [
        ("pytorch_model.bin", [], True),
        ("PYTORCH.BIN", [], True),
        ("sub/x.pt", [], True),
        ("training_args.bin", ["training_args.bin"], False),
        ("a.pkl", ["*.bin"], True),
        ("model.safetensors", [], False),
        ("tokenizer.json", [], False),
    ],
)
def test_unsafe_formats(name: str, allowed: list[str], unsafe: bool) -> None:
    assert unsafe_files([name], allowed) == ([name] if unsafe else [])


def test_texts() -> None:
    assert [size_text(size) for size in (5, 2048, 3 * 2**20, 410 * 2**30)] == ["5 B", "2.0 KiB", "3.0 MiB", "410.0 GiB"]
    assert [partial_name(name) for name in ("a", "b/a", "/x/a")] == [
        ".a.sparkrig-part",
        "b/.a.sparkrig-part",
        "/x/.a.sparkrig-part",
    ]


def test_progress() -> None:
    assert progress("spark1", 123 * 2**30, 410 * 2**30) == (
        "spark1: hashing the checkpoint, 123.0 GiB of 410.0 GiB (30 %)"
    )
    assert progress("spark1", 0, 0).endswith("(0 %)")


Run = t.Callable[..., "dict[str, t.Any]"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(module: t.Any, check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
        with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        return t.cast("dict[str, t.Any]", json.loads(capsys.readouterr().out))

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "a").write_bytes(b"aaa")
    (path / "b").write_bytes(b"bbbb")
    return path


def test_manifest_is_made_once_and_verified_by_a_look(folder: Path, run: Run) -> None:
    looked = run(checkpoint_manifest, check=True, folders=[str(folder)])
    assert looked["changed"]
    assert not looked["done"]
    assert not (folder / MANIFEST_FILE).exists()
    made = run(checkpoint_manifest, folders=[str(folder), str(folder / "none")])
    assert made["changed"]
    assert made["actions"][-2:] == [f"{folder}: as it was hashed, 2 of 2 files", f"{folder}/none: not there"]
    assert made["folders"][0]["files"]["a"] == {"size_bytes": 3, "sha256": hashlib.sha256(b"aaa").hexdigest()}
    assert made["folders"][0]["digest"]
    assert not made["folders"][1]["exists"]
    before = (folder / MANIFEST_FILE).read_bytes()
    again = run(checkpoint_manifest, folders=[str(folder)])
    assert not again["changed"]
    assert again["actions"] == [f"{folder}: as it was hashed, 2 of 2 files"]
    assert (folder / MANIFEST_FILE).read_bytes() == before


def test_changed_and_gone_files(folder: Path, run: Run) -> None:
    run(checkpoint_manifest, folders=[str(folder)])
    (folder / "a").write_bytes(b"other")
    (folder / "b").unlink()
    assert run(checkpoint_manifest, folders=[str(folder)])["actions"] == [
        f"{folder}/a: hashed again, another content than before",
        f"{folder}/b: gone, and forgotten",
        f"{folder}: as it was hashed, 1 of 1 files",
    ]


def test_a_flipped_byte_shows_in_full_and_stays_known(folder: Path, run: Run) -> None:
    run(checkpoint_manifest, folders=[str(folder)])
    seen = (folder / "a").stat()
    with (folder / "a").open("r+b") as stream:
        stream.write(b"b")
    os.utime(folder / "a", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert not run(checkpoint_manifest, folders=[str(folder)])["changed"]
    full = run(checkpoint_manifest, folders=[str(folder)], full=True)
    assert full["done"]
    sentence = f"{folder}/a: damaged, its content changed while size, time and inode stayed the same"
    assert sentence in full["actions"]
    assert full["folders"][0]["damaged"] == {"a": hashlib.sha256(b"aaa").hexdigest()}
    assert run(checkpoint_manifest, check=True, folders=[str(folder)])["folders"][0]["damaged"]
    (folder / "a").write_bytes(b"aaa")
    assert not run(checkpoint_manifest, folders=[str(folder)])["folders"][0]["damaged"]


def test_progress_is_told_inside_a_file(
    folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = tmp_path / "go-on"

    def slow(path: str, on_bytes: t.Callable[[int], None]) -> Entry:
        if path.endswith("/b"):
            on_bytes(3)
            while not go_on.exists():
                time.sleep(0.01)
        return hash_file(path)

    monkeypatch.setattr(_manifest, "hash_file", slow)
    monkeypatch.setattr(_checkpoint_hashing, "_TELL_S", 0.01)
    first = run(checkpoint_manifest, folders=[str(folder)], budget_s=1, workers=2)
    assert not first["done"]
    assert first["actions"] == [f"{folder}/a: hashed", f"{folder}: 1 of 2 files to be hashed"]
    # The whole of a, and what b has so far.
    assert (first["hashed_bytes"], first["total_bytes"]) == (3 + 3, 7)
    # The next call finds the work under way: what holds it up goes away while that call waits.
    threading.Timer(0.5, go_on.touch).start()
    second = run(checkpoint_manifest, folders=[str(folder)])
    assert second["done"]
    assert second["actions"] == [f"{folder}/b: hashed", f"{folder}: as it was hashed, 2 of 2 files"]
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST_FILE, "a", "b"]


# As on a node, where Python warns of a fork beside threads since 3.12; the process of the tests has some.
ALONE = """
import os, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.sparkrig.serving.plugins.modules import checkpoint_manifest
fork, threads = os.fork, []
def counted():
    threads.append(len(os.listdir("/proc/self/task")))
    return fork()
os.fork = counted
try:
    with patch_module_args({"folders": [sys.argv[1]]}):
        checkpoint_manifest.main()
finally:
    assert threads == [1], threads
"""


def test_a_module_forks_before_it_has_threads(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["done"]


def test_hashing_that_was_killed_is_continued(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: str, on_bytes: t.Callable[[int], None]) -> Entry:
        if path.endswith("/a"):
            os.kill(os.getpid(), signal.SIGKILL)
        return hash_file(path)

    monkeypatch.setattr(_manifest, "hash_file", killed)
    failed = run(checkpoint_manifest, folders=[str(folder)], workers=1)
    assert failed["msg"] == (
        f"whoever hashed {folder} ended without a word, perhaps it was killed or the memory ran out; run again: the "
        "files that were done are kept"
    )
    monkeypatch.undo()
    assert run(checkpoint_manifest, folders=[str(folder)])["actions"] == [
        f"{folder}/a: hashed",
        f"{folder}: as it was hashed, 2 of 2 files",
    ]


def test_hashing_that_nobody_waits_for_ends(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_manifest, "hash_file", lambda path, on_bytes: time.sleep(60))
    monkeypatch.setattr(_checkpoint_hashing, "_TELL_S", 0.01)
    monkeypatch.setattr(_checkpoint_hashing, "_FORSAKEN_S", 0.3)
    assert not run(checkpoint_manifest, folders=[str(folder)], budget_s=0)["done"]
    with (folder / _checkpoint_hashing.STATE_FILE).open() as state:
        deadline = time.monotonic() + 10
        while True:
            try:
                fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_a_file_that_cannot_be_hashed_is_named(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, on_bytes: t.Callable[[int], None]) -> Entry:
        raise OSError(5, os.strerror(5), path)

    monkeypatch.setattr(_manifest, "hash_file", broken)
    failed = run(checkpoint_manifest, folders=[str(folder)], workers=1)
    assert failed["msg"] == (
        f"{folder} cannot be hashed: Input/output error ({folder}/b); see that the disk is well and the folder can be "
        "written, then run again: the files that were done are kept"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_absent_leaves_the_checkpoint(folder: Path, run: Run) -> None:
    run(checkpoint_manifest, folders=[str(folder)])
    (folder / ".a.sparkrig-part").write_bytes(b"")
    assert run(checkpoint_manifest, folders=[str(folder)], state="absent")["changed"]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert not run(checkpoint_manifest, folders=[str(folder)], state="absent")["changed"]


@pytest.mark.parametrize("path", ["{folder}2/x", "{folder}/../x", "/etc/passwd"])
def test_remove_stays_below_the_folders(folder: Path, run: Run, path: str) -> None:
    result = run(checkpoint_manifest, folders=[str(folder)], remove=[path.format(folder=folder)])
    assert re.search("does not lie below .*, so it is not removed$", result["msg"])


def test_fetch_from_a_folder_is_continued(folder: Path, tmp_path: Path, run: Run) -> None:
    target = tmp_path / "target"
    (tmp_path / "target.sparkrig-fetch").mkdir()
    (tmp_path / "target.sparkrig-fetch" / "a.part").write_bytes(b"a")
    assert run(checkpoint_fetch, check=True, path=str(target), source=str(folder))["changed"]
    assert not target.exists()
    result = run(checkpoint_fetch, path=str(target), source=str(folder))
    assert result["actions"][0].endswith(f"files came from {folder}")
    assert (target / "b").read_bytes() == b"bbbb"
    assert run(checkpoint_fetch, path=str(target), source=str(folder))["actions"] == [f"{target}: already there"]


def test_fetch_by_a_command_hides_the_token(tmp_path: Path, run: Run) -> None:
    target = tmp_path / "target"
    script = 'echo "$HF_TOKEN" >"$0/a"; echo "token $HF_TOKEN" >&2; exit $1'
    command = ["sh", "-c", script, "{path}"]
    failed = run(checkpoint_fetch, path=str(target), command=[*command, "3"], token="sesame-sesame")
    assert failed["msg"].startswith("sh ended with 3: token ***")
    assert "sesame" not in json.dumps(failed)
    assert not target.exists()
    done = run(checkpoint_fetch, path=str(target), command=[*command, "0"], token="sesame-sesame")
    assert "sesame" not in json.dumps(done)
    assert (target / "a").read_text() == "sesame-sesame\n"


def test_fetch_refuses_a_file_that_is_cut_short(folder: Path, tmp_path: Path, run: Run) -> None:
    (folder / "m.safetensors").write_bytes(b"123")
    result = run(checkpoint_fetch, path=str(tmp_path / "target"), source=str(folder))
    assert "m.safetensors is no safetensors file: it has 3 bytes" in result["msg"]
    assert not (tmp_path / "target").exists()
