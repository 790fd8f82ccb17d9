# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path
from random import Random

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import CONFIG_FILE, INDEX_FILE
from ansible_collections.sparkrig.serving.plugins.modules import (
    checkpoint_info,
    checkpoint_manifest,
    checkpoint_overlay,
)
from lab import checkpoint

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
MTP_SHARD = "model-00004-of-00004.safetensors"

ADDED_BY_ANSIBLE = {"gid", "group", "mode", "owner", "size", "state", "uid"}

FOLDERS = {"base": "lab-base", "overlay": "lab-mtp", "path": "hybrid"}

Run = t.Callable[..., "dict[str, t.Any]"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, files in checkpoint.build(0).items():
        checkpoint.write(tmp_path / name, files)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(main: t.Callable[[], None], **arguments: t.Any) -> dict[str, t.Any]:
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        result = json.loads(capsys.readouterr().out)
        assert isinstance(result, dict)
        return result

    return run


@pytest.fixture
def build(models: Path, run: Run) -> Run:
    """Runs checkpoint_overlay on the lab's folders; keywords change or add options."""

    def build(check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        arguments = {
            "base": str(models / "lab-base"),
            "overlay": str(models / "lab-mtp"),
            "path": str(models / "hybrid"),
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            **options,
        }
        return run(checkpoint_overlay.main, **arguments)

    return build


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_hybrid_shares_inodes_and_has_one_whole_index(models: Path, build: Run) -> None:
    result = build(tensor_parallel_size=4)
    assert result["changed"]
    hybrid = models / "hybrid"
    for name in SHARDS:
        assert (hybrid / name).samefile(models / "lab-base" / name)
    assert (hybrid / MTP_SHARD).samefile(models / "lab-mtp" / MTP_SHARD)
    # JSON is for people to edit, and must not be the base's.
    for name in [CONFIG_FILE, "tokenizer.json"]:
        assert (hybrid / name).read_bytes() == (models / "lab-base" / name).read_bytes()
    assert {path.stat().st_nlink for path in hybrid.glob("*.json")} == {1}
    index = json.loads((hybrid / INDEX_FILE).read_text())
    assert index == json.loads((models / "lab-mtp" / INDEX_FILE).read_text())
    assert "model.layers.3.eh_proj.weight" in index["weight_map"]
    assert hybrid.stat().st_mode & 0o777 == 0o755
    assert result["path"] == str(hybrid)
    assert result["mtp"] == {"promised": True, "present": True, "precision": "bf16", "layers": [3], "bytes": 1379728}
    assert len(result["weights_bytes"]) == 4
    assert f"{MTP_SHARD}: linked from {models}/lab-mtp" in result["actions"]
    assert f"{INDEX_FILE}: written out of both indexes" in result["actions"]
    assert f"{CONFIG_FILE}: written out of {models}/lab-base" in result["actions"]


def test_second_run_changes_nothing(models: Path, build: Run) -> None:
    first = build()
    before = tree(models)
    second = build()
    assert not second["changed"]
    assert second["diff"]["before"] == second["diff"]["after"]
    assert all(sentence.endswith(": already there") for sentence in second["actions"])
    assert tree(models) == before
    assert second["digest"] == first["digest"]


def test_a_look_changes_nothing_and_says_what_would_be_done(models: Path, build: Run, run: Run) -> None:
    before = tree(models)
    looked = build(state="looked")
    assert (looked["changed"], looked["up_to_date"], looked["problem"]) == (False, False, "")
    assert tree(models) == before
    folders = [str(models / "lab-base"), str(models / "lab-mtp")]
    manifest = run(checkpoint_manifest.main, folders=folders, _ansible_check_mode=True)
    # Somebody else may write to the disk in between.
    for folder in (*looked["folders"], *manifest["folders"]):
        assert folder.pop("free_bytes") > 0
    assert looked["folders"] == manifest["folders"]
    built = build()
    assert built["actions"] == looked["actions"]
    assert build(state="looked")["up_to_date"]
    (models / "lab-base" / SHARDS[0]).unlink()
    looked = build(state="looked")
    assert not looked.get("failed")
    assert SHARDS[0] in looked["problem"]
    assert looked["problem"] == build(check=True)["msg"]


def same(predicted: dict[str, t.Any], done: dict[str, t.Any]) -> bool:
    """Whether what was predicted came true; Ansible adds owner and mode of a path that exists."""
    return all(done[key] == value for key, value in predicted.items() if key not in {"invocation", *ADDED_BY_ANSIBLE})


def test_check_mode_predicts_and_touches_nothing(models: Path, build: Run) -> None:
    before = tree(models)
    predicted = build(check=True)
    assert tree(models) == before
    done = build()
    assert same(predicted, done)
    assert predicted["changed"]
    assert predicted["diff"]["before"] == ""
    assert f"{SHARDS[0]}: link {models}/lab-base/{SHARDS[0]}\n" in predicted["diff"]["after"]
    assert build(check=True)["changed"] is False


def test_base_and_overlay_keep_every_byte(models: Path, build: Run) -> None:
    before = digests(models / "lab-base"), digests(models / "lab-mtp")
    build()
    for name in (INDEX_FILE, CONFIG_FILE):
        (models / "hybrid" / name).write_text("{}")
    os.unlink(models / "hybrid" / SHARDS[0])
    build()
    build(overlay=None)
    assert (digests(models / "lab-base"), digests(models / "lab-mtp")) == before


@pytest.mark.parametrize("damage", ["index", "linked", "copy", "gone", "extra"])
def test_what_somebody_changed_is_put_right(models: Path, build: Run, damage: str) -> None:
    build()
    hybrid = models / "hybrid"
    whole = digests(hybrid)
    if damage == "index":
        (hybrid / INDEX_FILE).write_text("{}")
    elif damage == "linked":
        # By hand, or by an overlay script of somebody else's.
        (hybrid / CONFIG_FILE).unlink()
        (hybrid / CONFIG_FILE).hardlink_to(models / "lab-base" / CONFIG_FILE)
    elif damage == "copy":
        content = (hybrid / SHARDS[1]).read_bytes()
        (hybrid / SHARDS[1]).unlink()
        (hybrid / SHARDS[1]).write_bytes(content)
    elif damage == "gone":
        (hybrid / SHARDS[1]).unlink()
    else:
        (hybrid / "stray.safetensors").write_bytes(b"")
    result = build()
    assert result["changed"]
    assert digests(hybrid) == whole
    assert (hybrid / SHARDS[1]).samefile(models / "lab-base" / SHARDS[1])
    assert (hybrid / CONFIG_FILE).stat().st_nlink == 1
    assert not build()["changed"]
    if damage == "extra":
        assert "stray.safetensors: removed, neither base nor overlay has it" in result["actions"]


def test_new_overlay_replaces_the_old_one(models: Path, build: Run) -> None:
    build()
    checkpoint.write(models / "lab-mtp", checkpoint.build(1)["lab-mtp"])
    assert build()["changed"]
    assert (models / "hybrid" / MTP_SHARD).samefile(models / "lab-mtp" / MTP_SHARD)
    assert sorted(path.name for path in models.iterdir()) == ["hybrid", "lab-base", "lab-mtp"]


class Killed(BaseException):
    """Ends a run where it stands, as SIGKILL does: nothing after it runs, not even an except OSError."""


@pytest.mark.parametrize("existing", [False, True])
def test_killed_at_any_point_leaves_no_hybrid_or_a_whole_one(
    models: Path, build: Run, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    if existing:
        build()
        checkpoint.write(models / "lab-mtp", checkpoint.build(1)["lab-mtp"])
    sources = digests(models / "lab-base"), digests(models / "lab-mtp")
    calls = 0
    limit = 0

    def guarded(real: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def call(*arguments: t.Any, **options: t.Any) -> t.Any:
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Killed
            return real(*arguments, **options)

        return call

    kills = 0
    while True:
        limit += 1
        calls = 0
        with monkeypatch.context() as patch:
            for name in ("link", "rename", "fsync", "mkdir"):
                patch.setattr(os, name, guarded(getattr(os, name)))
            try:
                build()
            except Killed:
                kills += 1
            else:
                break
        hybrid = models / "hybrid"
        if hybrid.exists():
            index = json.loads((hybrid / INDEX_FILE).read_text())
            assert all((hybrid / shard).exists() for shard in index["weight_map"].values())
        assert (digests(models / "lab-base"), digests(models / "lab-mtp")) == sources
    assert kills >= 10
    assert not build()["changed"]
    assert sorted(path.name for path in models.iterdir()) == ["hybrid", "lab-base", "lab-mtp"]
    assert (models / "hybrid" / MTP_SHARD).samefile(models / "lab-mtp" / MTP_SHARD)


def test_what_an_interrupted_run_left_is_removed(models: Path, build: Run) -> None:
    build()
    stale = models / "hybrid.partial-abc"
    stale.mkdir()
    os.link(models / "lab-base" / SHARDS[0], stale / SHARDS[0])
    predicted = build(check=True)
    assert stale.exists()
    result = build()
    assert same(predicted, result)
    assert result["changed"]
    assert result["actions"][0] == f"{stale}: removed, an interrupted run had left it"
    assert not stale.exists()
    assert (models / "lab-base" / SHARDS[0]).exists()


def test_base_is_served_as_it_is(models: Path, build: Run) -> None:
    for path in (None, str(models / "lab-base"), str(models / "lab-base") + "/"):
        result = build(overlay=None, path=path, mtp=False)
        assert not result["changed"]
        assert result["path"] == str(models / "lab-base")
        assert result["actions"] == [f"{models}/lab-base: served as it is"]
    assert not (models / "hybrid").exists()


def test_base_alone_can_have_a_folder_of_its_own(models: Path, build: Run) -> None:
    result = build(overlay=None, mtp=False)
    assert result["changed"]
    assert (models / "hybrid" / SHARDS[0]).samefile(models / "lab-base" / SHARDS[0])
    assert (models / "hybrid" / INDEX_FILE).read_bytes() == (models / "lab-base" / INDEX_FILE).read_bytes()


def test_links_of_a_download_cache_are_followed(models: Path, build: Run) -> None:
    real = models / "blobs"
    real.mkdir()
    os.rename(models / "lab-base" / SHARDS[0], real / "blob")
    (models / "lab-base" / SHARDS[0]).symlink_to("../blobs/blob")
    build()
    assert not (models / "hybrid" / SHARDS[0]).is_symlink()
    assert (models / "hybrid" / SHARDS[0]).samefile(real / "blob")
    (real / "blob").unlink()
    assert build()["msg"] == (f"{models}/blobs/blob does not exist: a link to it leads nowhere; copy the file there")


@pytest.fixture
def elsewhere(tmp_path: Path) -> t.Iterator[Path]:
    """A folder on another file system."""
    shared_memory = Path("/dev/shm")
    assert shared_memory.stat().st_dev != tmp_path.stat().st_dev, "the test needs two file systems: /dev/shm and /tmp"
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        yield Path(folder)


def test_overlay_on_another_file_system_is_copied(models: Path, build: Run, elsewhere: Path) -> None:
    overlay = shutil.copytree(models / "lab-mtp", elsewhere / "mtp")
    result = build(overlay=str(overlay))
    shard = models / "hybrid" / MTP_SHARD
    assert shard.read_bytes() == (overlay / MTP_SHARD).read_bytes()
    assert f"{MTP_SHARD}: copied, as its file system is another one, from {overlay}" in result["actions"]
    assert not build(overlay=str(overlay))["changed"]


def test_base_on_another_file_system_is_copied(models: Path, build: Run, elsewhere: Path) -> None:
    base = shutil.copytree(models / "lab-base", elsewhere / "base")
    predicted = build(check=True, base=str(base))
    result = build(base=str(base))
    assert same(predicted, result)
    assert f"{SHARDS[0]}: copied, as its file system is another one, from {base}" in result["actions"]
    assert digests(models / "hybrid").items() > {(name, digests(base)[name]) for name in SHARDS}
    assert not build(base=str(base))["changed"]
    # The same size and time, but another file: known by its inode.
    stat = (base / SHARDS[0]).stat()
    (base / "new").write_bytes((base / SHARDS[0]).read_bytes())
    os.utime(base / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(base / "new", base / SHARDS[0])
    assert build(base=str(base))["changed"]


def test_copies_without_room_are_refused_before_the_first_byte(
    models: Path, build: Run, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(models / "lab-base", elsewhere / "base")
    real = os.statvfs(models)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*tuple(real)[:4], 1, *tuple(real)[5:])))
    needed = sum(path.stat().st_size for path in base.iterdir() if path.suffix != ".json")
    result = build(base=str(base))
    assert result["msg"] == (
        f"{models}/hybrid needs {needed} bytes, as the files lie on another file system and have to be copied, and "
        f"only {real.f_frsize} are free there; choose a path on the file system of the checkpoint, or free some room"
    )
    assert not (models / "hybrid").exists()


@pytest.mark.parametrize("knows_how", [True, False])
def test_parts_of_one_file_system_share_blocks(
    models: Path, build: Run, monkeypatch: pytest.MonkeyPatch, knows_how: bool
) -> None:
    table = [
        checkpoint_overlay.Mount("/", "0:1", "btrfs"),
        checkpoint_overlay.Mount(str(models / "lab-mtp"), "0:1", "btrfs"),
    ]
    calls = []

    def ioctl(target: int, request: int, source: int) -> None:
        calls.append(request)
        if not knows_how:
            raise OSError(95, os.strerror(95))
        os.sendfile(target, source, 0, os.fstat(source).st_size)

    monkeypatch.setattr(checkpoint_overlay, "mounts", lambda: table)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    result = build()
    assert calls == [checkpoint_overlay.FICLONE]
    assert (
        f"{MTP_SHARD}: cloned (reflink), as a hardlink cannot reach there, from {models}/lab-mtp" in result["actions"]
    )
    assert digests(models / "hybrid")[MTP_SHARD] == digests(models / "lab-mtp")[MTP_SHARD]
    assert not build()["changed"]


def test_mount_of_a_path() -> None:
    table = [
        checkpoint_overlay.Mount("/", "8:1", "ext4"),
        checkpoint_overlay.Mount("/srv", "8:2", "xfs"),
        checkpoint_overlay.Mount("/srv", "8:3", "btrfs"),
    ]
    assert checkpoint_overlay.mount_of("/srv/models/not/there", table).device == "8:3"
    assert checkpoint_overlay.mount_of("/srvx", table).device == "8:1"


KILLED = """
import json, os, random, signal, sys, threading
from ansible.module_utils.testing import patch_module_args
from ansible_collections.sparkrig.serving.plugins.modules import checkpoint_overlay
seconds = float(sys.argv[2])
threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
with patch_module_args(json.loads(sys.argv[1])):
    try:
        checkpoint_overlay.main()
    finally:
        os._exit(0)
"""


@pytest.mark.slow
def test_sigkill_at_random_points(models: Path, build: Run) -> None:
    """Another overlay before each run, so that each has to build; killed 0 to 60 ms into the work."""
    random = Random(4)
    sources = digests(models / "lab-base")
    overlays = [checkpoint.build(seed)["lab-mtp"] for seed in (1, 2)]
    arguments = {name: str(models / folder) for name, folder in FOLDERS.items()}
    killed = 0
    for attempt in range(24):
        checkpoint.write(models / "lab-mtp", overlays[attempt % 2])
        command = [sys.executable, "-c", KILLED, json.dumps(arguments), str(random.uniform(0, 0.06))]
        done = subprocess.run(command, env={"PYTHONPATH": ".collections"}, stdout=subprocess.DEVNULL)
        killed += done.returncode == -signal.SIGKILL
        hybrid = models / "hybrid"
        if hybrid.exists():
            weight_map = json.loads((hybrid / INDEX_FILE).read_text())["weight_map"]
            assert set(weight_map.values()) == {path.name for path in hybrid.glob("*.safetensors")}
        assert digests(models / "lab-base") == sources
    assert killed >= 6
    build()
    assert not build()["changed"]
    assert sorted(path.name for path in models.iterdir()) == ["hybrid", "lab-base", "lab-mtp"]


def test_absent_removes_the_hybrid_and_nothing_else(models: Path, build: Run) -> None:
    before = digests(models / "lab-base"), digests(models / "lab-mtp")
    build()
    (models / "hybrid.partial-abc").mkdir()
    predicted = build(check=True, state="absent")
    assert (models / "hybrid").exists()
    result = build(state="absent")
    assert same(predicted, result)
    assert result["actions"] == [f"{models}/hybrid.partial-abc: removed", f"{models}/hybrid: removed"]
    assert sorted(path.name for path in models.iterdir()) == ["lab-base", "lab-mtp"]
    assert (digests(models / "lab-base"), digests(models / "lab-mtp")) == before
    again = build(state="absent")
    assert not again["changed"]
    assert again["actions"] == [f"{models}/hybrid: not there"]
    foreign = build(state="absent", path=str(models / "lab-base"), overlay=None)
    assert foreign["actions"] == [f"{models}/lab-base: left alone, it was not built by this module"]
    assert digests(models / "lab-base") == before[0]


def test_weights_that_run_code_are_refused_unless_allowed(models: Path, build: Run) -> None:
    (models / "lab-base" / "training_args.bin").write_bytes(b"pickle")
    assert build()["msg"] == (
        f"{models}/lab-base and {models}/lab-mtp holds training_args.bin: weights in such formats can run code when "
        "they are loaded, and have no header to check; take them away, or allow them by name (allow_files)"
    )
    assert build(allow_files=["training_args.*"])["changed"]


def test_a_pipe_is_no_file(models: Path, run: Run) -> None:
    (models / "lab-base" / SHARDS[1]).unlink()
    os.mkfifo(models / "lab-base" / SHARDS[1])
    result = run(checkpoint_info.main, path=str(models / "lab-base"), mtp=False)
    sentence = f"{models}/lab-base/{SHARDS[1]} is no regular file; a checkpoint holds nothing else, take it away"
    assert result["problems"] == [sentence]
    assert result["damaged"] == {SHARDS[1]: sentence}


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (18, "base and path are on different mounts, choose a path on the base's file system"),
        (28, "free some room on that file system"),
        (1, "the kernel lets only the owner make hardlinks there, run the task as root"),
    ],
)
def test_failed_link_leaves_nothing(
    models: Path, build: Run, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number), source)

    monkeypatch.setattr(os, "link", link)
    result = build()
    assert result["msg"].startswith("The hybrid could not be built: ")
    assert result["msg"].endswith(f"; {sentence}")
    assert sorted(path.name for path in models.iterdir()) == ["lab-base", "lab-mtp"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"base": "{models}/none"},
            "{models}/none is no folder on this node; put the checkpoint there, or correct the path",
        ),
        (
            {"overlay": None},
            "config.json promises 1 MTP layer (num_nextn_predict_layers), but no file holds model.layers.3.*: add the "
            "overlay that does, or serve without drafts",
        ),
        (
            {"path": "{models}/lab-base"},
            "path is {models}/lab-base, in, around or at {models}/lab-base; the hybrid needs a folder of its own",
        ),
        (
            {"path": "{models}/lab-base/../lab-mtp/hybrid"},
            "path is {models}/lab-mtp/hybrid, in, around or at {models}/lab-mtp; the hybrid needs a folder of its own",
        ),
        (
            {"path": "{models}"},
            "path is {models}, in, around or at {models}/lab-base; the hybrid needs a folder of its own",
        ),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0, it must be at least 1"),
        (
            {"tensor_parallel_size": 3},
            "self_attn.q_b_proj.weight is 512 wide, which 3 ranks cannot split evenly\n"
            "self_attn.kv_b_proj.weight is 512 wide, which 3 ranks cannot split evenly\n"
            "self_attn.o_proj.weight is 256 wide, which 3 ranks cannot split evenly\n"
            "mlp.gate_proj.weight is 256 wide, which 3 ranks cannot split evenly\n"
            "mlp.up_proj.weight is 256 wide, which 3 ranks cannot split evenly\n"
            "and 7 more problems",
        ),
        ({"pipeline_parallel_size": 5}, "pipeline_parallel_size is 5, the model has only 3 layers"),
    ],
)
def test_bad_input_is_refused_before_anything_is_touched(
    models: Path, build: Run, options: dict[str, t.Any], sentence: str
) -> None:
    before = tree(models)
    filled = {key: value.format(models=models) if isinstance(value, str) else value for key, value in options.items()}
    result = build(**filled)
    assert result["failed"]
    assert result["msg"] == sentence.format(models=models)
    assert tree(models) == before


def test_folder_of_somebody_else_is_never_touched(models: Path, build: Run) -> None:
    (models / "hybrid").mkdir()
    (models / "hybrid" / "thesis.tex").write_text("")
    result = build()
    assert re.match(re.escape(f"{models}/hybrid exists and was not built by this module; move it away"), result["msg"])
    assert [path.name for path in (models / "hybrid").iterdir()] == ["thesis.tex"]


def test_empty_folder_is_taken(models: Path, build: Run) -> None:
    (models / "hybrid").mkdir()
    assert build()["changed"]


def test_overlay_needs_a_path(models: Path, build: Run) -> None:
    assert "path" in build(path=None)["msg"]


def test_info_reports_problems_without_failing(models: Path, run: Run) -> None:
    (models / "lab-base" / SHARDS[1]).unlink()
    result = run(checkpoint_info.main, path=str(models / "lab-base"), tensor_parallel_size=2)
    assert "failed" not in result
    assert not result["changed"]
    assert result["problems"] == [
        f"{SHARDS[1]} is missing in {models}/lab-base, and {INDEX_FILE} names it; copy it there"
    ]
    assert set(result["files"]) == {SHARDS[0], SHARDS[2]}
    assert result["missing"] == [SHARDS[1]]
    assert result["damaged"] == {}


def test_info_of_no_checkpoint_fails(models: Path, run: Run) -> None:
    (models / "lab-base" / CONFIG_FILE).unlink()
    result = run(checkpoint_info.main, path=str(models / "lab-base"))
    assert result["msg"].startswith(f"{models}/lab-base has no config.json")


def test_info_says_of_the_hybrid_what_the_build_said(models: Path, build: Run, run: Run) -> None:
    built = build(tensor_parallel_size=2)
    seen = run(checkpoint_info.main, path=str(models / "hybrid"), tensor_parallel_size=2)
    ignored = {"actions", "diff", "changed", "up_to_date", "invocation", *ADDED_BY_ANSIBLE}
    assert {key: value for key, value in seen.items() if key not in ignored} == {
        key: value for key, value in built.items() if key not in ignored
    }
