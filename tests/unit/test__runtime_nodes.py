# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The trees of a node: a good archive becomes a tree, a bad one leaves everything as it was."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _runtime_nodes
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import Target
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import (
    Layout,
    Record,
    TreeError,
    load_record,
    look_sha256,
    manifest_head,
    rows_of,
    stale_trees,
    store_record,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import (
    NodeFacts,
    bytes_needed,
    check_node,
    check_tree,
    install,
    remove_tree,
    switch,
)
from tests.fixtures.runtimes import FILES, LONG, Made, make_archive

ONE, TWO, THREE = "1" * 16, "2" * 16, "3" * 16


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "opt", tmp_path / "state" / "runtime.json")


def put(layout: Layout, made: Made) -> Path:
    install(layout, made.path, made.digest, made.tree_sha256)
    return layout.tree(made.digest)


def test_an_archive_becomes_a_read_only_tree(tmp_path: Path, layout: Layout) -> None:
    made = make_archive(tmp_path)
    tree = put(layout, made)
    assert check_tree(tree, made.tree_sha256, full=True) is None
    assert (tree / LONG).read_bytes() == FILES[LONG][0]
    assert os.readlink(tree / "bin/python") == "/usr/bin/python3"
    modes = {path.stat().st_mode & 0o7777 for path in tree.rglob("*") if path.is_dir()}
    assert modes == {0o555}
    assert layout.digests() == (ONE,)
    assert [path.name for path in layout.trees.iterdir()] == [ONE]


def test_the_archive_is_one_that_tar_reads(tmp_path: Path) -> None:
    with tarfile.open(make_archive(tmp_path).path) as tar:
        assert {item.name for item in tar} == {"manifest.json", "bin/python", *FILES}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "ends too early"),
        (lambda data: b"", "ends too early"),
        (lambda data: b"not a tar".ljust(2048, b"."), "a header is not one"),
        (lambda data: data.replace(b"x = 1\nx = 1\n", b"x = 1\nx = 2\n", 1), f"is damaged at {LONG}"),
        (lambda data: data.replace(b"ustar", b"USTAR", 1), "a header is not one"),
        (
            lambda data: data.replace(b"manifest.json", b"MANIFEST.json", 1).replace(b'"format":1', b'"format":7'),
            "format 7",
        ),
        (lambda data: data.replace(b'"tree_bytes"', b'"tree_bites"', 1), "cannot be read"),
    ],
    ids=["cut", "empty", "other file", "one byte", "header", "format", "manifest"],
)
def test_a_damaged_archive_changes_nothing(
    tmp_path: Path, layout: Layout, damage: t.Callable[[bytes], bytes], words: str
) -> None:
    good = make_archive(tmp_path, ONE)
    put(layout, good)
    switch(layout, ONE)
    bad = make_archive(tmp_path, TWO)
    bad.path.write_bytes(damage(bad.path.read_bytes()))
    with pytest.raises(TreeError) as caught:
        put(layout, bad)
    assert words in str(caught.value)
    assert layout.digests() == (ONE,)
    assert [path.name for path in layout.trees.iterdir()] == [ONE]
    assert layout.current_digest() == ONE


def rewrite(made: Made, change: t.Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Pack the archive anew with other members."""
    with tarfile.open(made.path) as tar:
        members = []
        for item in tar:
            stream = tar.extractfile(item) if item.isreg() else None
            members.append((item, stream.read() if stream is not None else b""))
    change(members)
    with tarfile.open(made.path, "w", format=tarfile.GNU_FORMAT) as tar:
        for item, data in members:
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))


def test_more_than_the_manifest_says_is_refused(tmp_path: Path, layout: Layout) -> None:
    made = make_archive(tmp_path)
    rewrite(made, lambda members: members.append((tarfile.TarInfo("extra"), b"x")))
    with pytest.raises(TreeError, match="has more than its manifest says"):
        put(layout, made)


def test_less_than_the_manifest_says_is_refused(tmp_path: Path, layout: Layout) -> None:
    made = make_archive(tmp_path)
    rewrite(made, lambda members: members.__delitem__(-1))
    with pytest.raises(TreeError, match="has something else where its manifest has"):
        put(layout, made)


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path, layout: Layout) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        item = next(item for item, _data in members if item.name == "lib/empty.py")
        item.type, item.linkname = tarfile.SYMTYPE, "/etc/passwd"

    made = make_archive(tmp_path)
    rewrite(made, change)
    with pytest.raises(TreeError, match=r"something else where its manifest has lib/empty\.py"):
        put(layout, made)


def test_another_runtime_than_asked_for_is_refused(tmp_path: Path, layout: Layout) -> None:
    made = make_archive(tmp_path, ONE)
    with pytest.raises(TreeError, match=f"holds the runtime {ONE} .* expected {TWO}"):
        install(layout, made.path, TWO, made.tree_sha256)
    with pytest.raises(TreeError, match="is not the digest of a runtime"):
        install(layout, made.path, "../../etc", made.tree_sha256)


def test_a_disk_that_fills_leaves_what_was_there(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(layout, make_archive(tmp_path, ONE))
    second = make_archive(tmp_path, TWO)

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        with pytest.raises(TreeError, match=f"filled up while the runtime {TWO} was unpacked"):
            put(layout, second)
    assert [path.name for path in layout.trees.iterdir()] == [ONE]
    put(layout, second)
    assert layout.digests() == (ONE, TWO)


def test_what_an_interrupted_run_left_is_no_obstacle(tmp_path: Path, layout: Layout) -> None:
    made = make_archive(tmp_path)
    half = layout.trees / f"{ONE}.partial" / "lib"
    half.mkdir(parents=True)
    (half / "half.py").write_text("x")
    half.chmod(0o555)
    half.parent.chmod(0o555)
    put(layout, made)
    assert [path.name for path in layout.trees.iterdir()] == [ONE]


def test_two_at_once_unpack_once(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_archive(tmp_path)
    unpacked = []
    real = _runtime_nodes._unpack

    def slow(*arguments: t.Any) -> t.Any:
        unpacked.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(_runtime_nodes, "_unpack", slow)
    threads = [threading.Thread(target=put, args=(layout, made)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(unpacked) == 1
    assert check_tree(layout.tree(ONE), made.tree_sha256, full=True) is None


def unlock(tree: Path) -> None:
    for folder in [tree, *(path for path in tree.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("damage", "words", "quick"),
    [
        (lambda tree: (tree / "lib/empty.py").unlink(), "lacks lib/empty.py", True),
        (lambda tree: (tree / "lib/new.py").write_text(""), "files that are not part of it: lib/new.py", True),
        (
            lambda tree: (tree / "bin/run").chmod(0o777),
            "bin/run has 10 bytes and mode 0777, expected 10 and 0555",
            True,
        ),
        (lambda tree: (tree / "bin/python").unlink(), "lacks bin/python", True),
        (
            lambda tree: ((tree / "bin/python").unlink(), (tree / "bin/python").symlink_to("/bin/sh")),
            "bin/python points to /bin/sh, expected /usr/bin/python3",
            True,
        ),
        (
            lambda tree: ((tree / "bin/python").unlink(), (tree / "bin/python").write_text("")),
            "bin/python is not a symlink to /usr/bin/python3",
            True,
        ),
        (
            lambda tree: (
                (tree / "bin/run").chmod(0o755),
                (tree / "bin/run").write_bytes(b"#!/bin/xy\n"),
                (tree / "bin/run").chmod(0o555),
            ),
            "bin/run has other content than the manifest says",
            False,
        ),
        (lambda tree: (tree / "manifest.json").unlink(), "has no manifest that can be read", True),
        (lambda tree: remove_tree(tree), "is not there", True),
    ],
)
def test_a_tree_that_changed_is_found(
    tmp_path: Path, layout: Layout, damage: t.Callable[[Path], object], words: str, quick: bool
) -> None:
    made = make_archive(tmp_path)
    tree = put(layout, made)
    unlock(tree)
    assert check_tree(tree, made.tree_sha256, full=True) is None
    damage(tree)
    seen = check_tree(tree, made.tree_sha256, full=not quick)
    assert seen is not None
    assert words in seen
    if not quick:
        assert check_tree(tree, made.tree_sha256, full=False) is None
    install(layout, made.path, ONE, made.tree_sha256, full=not quick)
    assert check_tree(tree, made.tree_sha256, full=True) is None


def test_another_tree_under_this_name_is_found(tmp_path: Path, layout: Layout) -> None:
    tree = put(layout, make_archive(tmp_path))
    seen = check_tree(tree, "0" * 64, full=False)
    assert seen is not None
    assert "is another tree" in seen


def test_current_is_switched_in_one_step(tmp_path: Path, layout: Layout) -> None:
    for digest in (ONE, TWO):
        put(layout, make_archive(tmp_path, digest))
    assert layout.current_digest() is None
    (layout.root / ".current.partial").symlink_to("left/behind")
    for digest in (ONE, TWO, ONE):
        switch(layout, digest)
        assert layout.current_digest() == digest
        assert (layout.current / "bin/run").is_file()
    with pytest.raises(TreeError, match=f"there is no runtime {THREE}"):
        switch(layout, THREE)
    assert layout.current_digest() == ONE


@pytest.mark.parametrize("target", ["elsewhere", "/opt/other/" + ONE, "runtime/latest"])
def test_a_current_that_is_not_ours_is_not_taken_for_ours(layout: Layout, target: str) -> None:
    layout.root.mkdir()
    layout.current.symlink_to(target)
    assert layout.current_digest() is None


def test_the_record_knows_the_last_ones(layout: Layout) -> None:
    record = load_record(layout.record)
    assert record == Record(())
    assert record.previous is None
    for digest in (ONE, TWO, TWO, THREE, ONE):
        record = record.switched_to(digest)
    assert record.history == (TWO, THREE, ONE)
    assert record.previous == THREE
    store_record(layout.record, record)
    assert load_record(layout.record) == record
    assert stale_trees((ONE, TWO, THREE), record, 2) == (TWO,)
    assert stale_trees((ONE, TWO, THREE), record, 1) == (TWO, THREE)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"history": 3}', '{"history": ["../..", 5]}'])
def test_a_record_that_cannot_be_read_is_empty(layout: Layout, text: str) -> None:
    layout.record.parent.mkdir()
    layout.record.write_text(text)
    assert load_record(layout.record) == Record(())


LAB = Target("3.11", "x86_64", "2.34")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (NodeFacts("x86_64", "2.36", "3.11.2", "3.11.2"), None),
        (NodeFacts("x86_64", "", "3.11.2", "3.11.2"), None),
        (NodeFacts("aarch64", "2.39", "3.11.2", "3.11.2"), "is for x86_64 and this node is aarch64"),
        (NodeFacts("x86_64", "2.36", None, "3.12.3"), "needs /usr/bin/python3.11, which this node does not have"),
        (NodeFacts("x86_64", "2.36", None, None), "its /usr/bin/python3 is missing"),
        (NodeFacts("x86_64", "2.36", "3.10.1", "3.10.1"), "of this node says that it is 3.10.1"),
        (NodeFacts("x86_64", "2.31", "3.11.2", "3.11.2"), "needs glibc 2.34 or newer and this node has 2.31"),
        (NodeFacts("x86_64", "2.4", "3.11.2", "3.11.2"), "this node has 2.4"),
    ],
)
def test_whether_a_node_can_run_it(facts: NodeFacts, words: str | None) -> None:
    seen = check_node(facts, LAB)
    if words is None:
        assert seen is None
    else:
        assert seen is not None
        assert words in seen


def test_room_for_archive_tree_and_others() -> None:
    assert bytes_needed(1_000_000_000, 10_000, 0) > 1_250_000_000
    assert bytes_needed(1, 1, 500) - bytes_needed(1, 1, 0) == 500


def test_removing_is_repeatable(tmp_path: Path, layout: Layout) -> None:
    tree = put(layout, make_archive(tmp_path))
    remove_tree(tree)
    remove_tree(tree)
    assert not list(layout.trees.iterdir())
    (tmp_path / "link").symlink_to("nowhere")
    remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()


def test_a_look_at_a_tree_is_what_its_manifest_promises(tmp_path: Path, layout: Layout) -> None:
    made = make_archive(tmp_path)
    tree = put(layout, made)
    text = (tree / "manifest.json").read_bytes()
    assert look_sha256(text, rows_of(tree)) == made.look_sha256
    head = manifest_head(text)
    assert (head.digest, head.tree_sha256, head.versions["ray"]) == (ONE, made.tree_sha256, "2.60.0")
    # A name cannot pass for the end of the entries.
    odd = make_archive(tmp_path, TWO, {'lib/"format":1,"digest":"': (b"", 0o444)})
    assert manifest_head((put(layout, odd) / "manifest.json").read_bytes()).digest == TWO
    with pytest.raises(ValueError, match="the manifest has no entries"):
        manifest_head(b"{}")
