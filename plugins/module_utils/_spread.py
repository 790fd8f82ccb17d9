# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who lacks which file of a checkpoint, who has it, whether there is room, and each node's part of the copy.

Private to the collection. Works on what module checkpoint_manifest said of each node.
"""

from __future__ import annotations

import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import partial_name, size_text

Look = t.Mapping[str, t.Any]
# Per node, the folders in one order: the base, then the overlay.
Looks = t.Mapping[str, t.Sequence[Look]]


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


class _Folder:
    """One folder of the checkpoint on all nodes."""

    def __init__(self, number: int, nodes: t.Sequence[str], looks: Looks) -> None:
        self.looks = {node: looks[node][number] for node in nodes}
        self.path = str(self.looks[nodes[0]]["path"])
        # The first node that has the folder says what belongs to it.
        self.reference = next((node for node in nodes if self.looks[node]["exists"]), None)
        self.wanted: dict[str, dict[str, t.Any]] = {}
        if self.reference is not None:
            look = self.looks[self.reference]
            for name, file in look["files"].items():
                sha256 = file["sha256"] or look["damaged"].get(name)
                self.wanted[name] = {"size_bytes": file["size_bytes"], "sha256": sha256}

    def lacks(self, node: str) -> list[str]:
        """The files that *node* needs. What was not hashed yet is judged by its size."""
        look = self.looks[node]
        found = []
        for name, wanted in self.wanted.items():
            seen = look["files"].get(name)
            same = seen is not None and seen["size_bytes"] == wanted["size_bytes"] and name not in look["damaged"]
            if same and seen["sha256"] and wanted["sha256"]:
                same = seen["sha256"] == wanted["sha256"]
            if not same:
                found.append(name)
        return sorted(found)

    def unused(self, node: str) -> list[str]:
        """What lies in the folder on *node* and is no part of the checkpoint: other files, parts of other copies."""
        look = self.looks[node]
        lacked = set(self.lacks(node))
        others = [name for name in look["files"] if name not in self.wanted]
        parts = [partial_name(name) for name in look["partial_bytes"] if name not in lacked]
        return sorted(f"{look['path']}/{name}" for name in others + parts)


def _room_problem(node: str, folders: t.Sequence[_Folder], lacks: t.Sequence[list[str]], reserve: int) -> list[str]:
    """Whether *node* has room for all that it lacks, file system by file system."""
    needed: dict[int, int] = {}
    looks = [folder.looks[node] for folder in folders]
    for folder, look, names in zip(folders, looks, lacks):
        for name in names:
            size = folder.wanted[name]["size_bytes"]
            # A part that is there already takes its room already.
            needed[look["device"]] = needed.get(look["device"], 0) + max(size - look["partial_bytes"].get(name, 0), 0)
    found = []
    for look in looks:
        more = needed.pop(look["device"], 0)
        if more and more + reserve > look["free_bytes"]:
            found.append(
                f"{node} has {size_text(look['free_bytes'])} free for {look['path']}; what it lacks of the checkpoint "
                f"takes {size_text(more)}, and {size_text(reserve)} are to stay free; free some room there, or lower "
                "checkpoint_reserve_bytes"
            )
    return found


def spread_plan(nodes: t.Sequence[str], looks: Looks, reserve_bytes: int = 0) -> dict[str, t.Any]:
    """What has to be copied to make every node whole, and what stands in the way."""
    unknown = [node for node in nodes if node not in looks]
    if unknown or not nodes:
        raise ValueError(f"nothing is known of the checkpoint on {', '.join(unknown) or 'any node'}")
    if len({len(looks[node]) for node in nodes}) != 1:
        raise ValueError("every node must be asked for the same folders")
    folders = [_Folder(number, nodes, looks) for number in range(len(looks[nodes[0]]))]
    lacks = {node: [folder.lacks(node) for folder in folders] for node in nodes}
    problems: list[str] = []
    for number, folder in enumerate(folders):
        for name in folder.wanted:
            if all(name in lacks[node][number] for node in nodes):
                problems.append(
                    f"{folder.path}/{name} is damaged on {folder.reference}: its content changed while size, time and "
                    f"inode stayed the same, and no other node has it whole; copy it to {folder.reference} again"
                )
    sentences = []
    for node in nodes:
        problems += _room_problem(node, folders, lacks[node], reserve_bytes)
        for folder, names in zip(folders, lacks[node]):
            if names:
                size = sum(folder.wanted[name]["size_bytes"] for name in names)
                some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                path = folder.looks[node]["path"]
                sentences.append(f"{node}: {_files(len(names))} of {path} ({size_text(size)}) to be copied: {some}")
    absent = [folder.path for folder in folders if folder.reference is None]
    return {
        "absent": absent,
        "references": [folder.reference for folder in folders],
        "lacks": {node: names for node, names in lacks.items() if any(names)},
        "whole": [node for node in nodes if not any(lacks[node]) and not absent],
        "unhashed": {node: count for node in nodes for count in (_unhashed(looks[node]),) if count},
        "unused": {node: names for node in nodes for names in (_unused(folders, node),) if names},
        "problems": problems,
        "sentences": sentences,
    }


def _unhashed(looks: t.Sequence[Look]) -> int:
    return sum(
        file["sha256"] is None and name not in look["damaged"] for look in looks for name, file in look["files"].items()
    )


def _unused(folders: t.Sequence[_Folder], node: str) -> list[str]:
    return [path for folder in folders for path in folder.unused(node)]


def spread_jobs(
    nodes: t.Sequence[str], looks: Looks, addresses: t.Mapping[str, t.Sequence[str]], options: t.Mapping[str, t.Any]
) -> dict[str, dict[str, t.Any]]:
    """Each node's part of the copy, for those that have one; *options* are port, streams and idle_timeout_s.

    The nodes form a ring in their order. Whatever a node lacks comes from the one before it, which may still
    receive it itself; so it does not matter who had it first.
    """
    plan = spread_plan(nodes, looks)
    folders = [_Folder(number, nodes, looks) for number in range(len(looks[nodes[0]]))]
    lacks = plan["lacks"]
    jobs = {}
    for number, node in enumerate(nodes):
        before, after = nodes[number - 1], nodes[(number + 1) % len(nodes)]
        if node not in lacks and after not in lacks:
            continue
        if not addresses.get(node):
            raise ValueError(f"no address is known of {node}")
        jobs[node] = {
            "name": node,
            **options,
            "listen": list(addresses[node]),
            "before": {"name": before, "addresses": list(addresses[before])} if node in lacks else None,
            "after": after if after in lacks else None,
            "folders": [
                {"path": folder.looks[node]["path"], "files": folder.wanted, "need": need}
                for folder, need in zip(folders, lacks.get(node, [[]] * len(folders)))
            ],
        }
    return jobs
