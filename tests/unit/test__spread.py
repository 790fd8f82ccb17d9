# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who lacks what, who gives it, and what is refused before the first byte."""

from __future__ import annotations

import re
import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._spread import spread_jobs, spread_plan

GIB = 2**30
NODES = ["n0", "n1", "n2", "n3"]
WHOLE = {"a": (GIB, "aa"), "b": (2 * GIB, "bb")}
OPTIONS = {"port": 1, "streams": 2, "idle_timeout_s": 3}
ADDRESSES = {node: [f"{node}.rail1", f"{node}.rail2"] for node in NODES}


def look(
    files: t.Mapping[str, tuple[int, str | None]] | None = None,
    *,
    damaged: t.Mapping[str, str] | None = None,
    partial: t.Mapping[str, int] | None = None,
    free: int = 100 * GIB,
    path: str = "/m",
    device: int = 1,
) -> dict[str, t.Any]:
    return {
        "path": path,
        "exists": bool(files),
        "files": {name: {"size_bytes": size, "sha256": sha} for name, (size, sha) in (files or {}).items()},
        "damaged": dict(damaged or {}),
        "partial_bytes": dict(partial or {}),
        "device": device,
        "free_bytes": free,
    }


def one(*looks: dict[str, t.Any]) -> dict[str, list[dict[str, t.Any]]]:
    """One folder on each node."""
    return {node: [seen] for node, seen in zip(NODES, looks)}


def test_nodes_that_lack_everything() -> None:
    plan = spread_plan(NODES, one(look(WHOLE), look(), look(WHOLE), look({"a": WHOLE["a"]})))
    assert plan["whole"] == ["n0", "n2"]
    assert plan["lacks"] == {"n1": [["a", "b"]], "n3": [["b"]]}
    assert plan["references"] == ["n0"]
    assert plan["absent"] == plan["problems"] == []
    assert plan["sentences"] == [
        "n1: 2 files of /m (3.0 GiB) to be copied: a, b",
        "n3: 1 file of /m (2.0 GiB) to be copied: b",
    ]


@pytest.mark.parametrize(
    ("seen", "lacked"),
    [
        (WHOLE, []),
        # Not hashed yet: the size decides.
        ({"a": (GIB, None), "b": (2 * GIB, None)}, []),
        ({"a": (GIB - 1, None), "b": (2 * GIB, None)}, ["a"]),
        ({"a": (GIB, "xx"), "b": (2 * GIB, "bb")}, ["a"]),
        ({"b": (2 * GIB, "bb")}, ["a"]),
    ],
)
def test_what_counts_as_the_same(seen: dict[str, tuple[int, str | None]], lacked: list[str]) -> None:
    plan = spread_plan(["n0", "n1"], one(look(WHOLE), look(seen)))
    assert plan["lacks"].get("n1", [[]])[0] == lacked


def test_nobody_has_it() -> None:
    plan = spread_plan(NODES, one(look(), look(), look(), look()))
    assert plan["absent"] == ["/m"]
    assert plan["whole"] == []
    assert plan["problems"] == []


def test_the_first_node_is_given_what_is_damaged_there() -> None:
    first = look({"a": (GIB, None), "b": WHOLE["b"]}, damaged={"a": "aa"})
    looks = one(first, look(WHOLE), look(WHOLE), look(WHOLE))
    plan = spread_plan(NODES, looks)
    assert plan["lacks"] == {"n0": [["a"]]}
    assert plan["problems"] == []
    jobs = spread_jobs(NODES, looks, ADDRESSES, OPTIONS)
    assert set(jobs) == {"n0", "n3"}
    assert jobs["n0"]["before"] == {"name": "n3", "addresses": ADDRESSES["n3"]}
    assert jobs["n0"]["folders"][0]["files"]["a"] == {"size_bytes": GIB, "sha256": "aa"}
    assert jobs["n3"]["before"] is None
    assert jobs["n3"]["after"] == "n0"


def test_damaged_everywhere() -> None:
    first = look({"a": (GIB, None), "b": WHOLE["b"]}, damaged={"a": "aa"})
    assert spread_plan(NODES[:2], one(first, look()))["problems"] == [
        "/m/a is damaged on n0: its content changed while size, time and inode stayed the same, and no other node has "
        "it whole; copy it to n0 again"
    ]


def test_room_is_seen_for_all_nodes_and_folders_before_the_first_byte() -> None:
    looks = {
        "n0": [look(WHOLE), look({"c": (GIB, "cc")}, path="/o")],
        "n1": [look(free=4 * GIB), look(path="/o", free=4 * GIB)],
        "n2": [look(free=3 * GIB), look(path="/o", device=2, free=0)],
        "n3": [look(free=3 * GIB, partial={"b": GIB}), look({"c": (GIB, "cc")}, path="/o")],
    }
    assert spread_plan(NODES, looks)["problems"] == [
        "n2 has 0 B free for /o; what it lacks of the checkpoint takes 1.0 GiB, and 0 B are to stay free; free some "
        "room there, or lower checkpoint_reserve_bytes"
    ]
    found = spread_plan(NODES, looks, GIB // 2)["problems"]
    assert [sentence.split(" has ")[0] for sentence in found] == ["n1", "n2", "n2"]
    # The part that is there has its room already: 2 GiB are left to copy.
    assert spread_plan(NODES, looks, GIB + 1)["problems"][-1].startswith("n3 has 3.0 GiB free for /m; what it lacks")


def test_unhashed_and_unused_files() -> None:
    seen = {**WHOLE, "old": (5, "oo"), "new": (6, None)}
    plan = spread_plan(["n0", "n1"], one(look(WHOLE), look(seen, partial={"a": 3, "sub/z": 4})))
    assert plan["unhashed"] == {"n1": 1}
    assert plan["unused"] == {"n1": ["/m/.a.sparkrig-part", "/m/new", "/m/old", "/m/sub/.z.sparkrig-part"]}
    assert spread_plan(["n0", "n1"], one(look(WHOLE), look(partial={"a": 3})))["unused"] == {}


def test_each_node_takes_from_the_one_before() -> None:
    jobs = spread_jobs(NODES, one(look(WHOLE), look(), look(), look()), ADDRESSES, OPTIONS)
    assert [(job["before"] or {}).get("name") for job in jobs.values()] == [None, "n0", "n1", "n2"]
    assert [job["after"] for job in jobs.values()] == ["n1", "n2", "n3", None]
    assert jobs["n1"] == {
        "name": "n1",
        **OPTIONS,
        "listen": ADDRESSES["n1"],
        "before": {"name": "n0", "addresses": ADDRESSES["n0"]},
        "after": "n2",
        "folders": [
            {
                "path": "/m",
                "files": {name: {"size_bytes": size, "sha256": sha} for name, (size, sha) in WHOLE.items()},
                "need": ["a", "b"],
            }
        ],
    }


def test_one_node_alone_has_nothing_to_do() -> None:
    looks = one(look(WHOLE))
    assert spread_plan(["n0"], looks)["lacks"] == {}
    assert spread_jobs(["n0"], looks, ADDRESSES, OPTIONS) == {}


@pytest.mark.parametrize(
    ("nodes", "looks", "sentence"),
    [
        (["n0", "n1"], one(look(WHOLE)), "nothing is known of the checkpoint on n1"),
        ([], {}, "nothing is known of the checkpoint on any node"),
        (["n0", "n1"], {"n0": [look()], "n1": []}, "every node must be asked for the same folders"),
    ],
)
def test_bad_questions(nodes: list[str], looks: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        spread_plan(nodes, looks)


def test_node_without_an_address() -> None:
    with pytest.raises(ValueError, match="^no address is known of n1$"):
        spread_jobs(["n0", "n1"], one(look(WHOLE), look()), {"n0": ["x"]}, OPTIONS)
