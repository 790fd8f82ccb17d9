# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on two nodes that are two folders of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from lab import checkpoint

pytestmark = pytest.mark.slow

PLAYBOOK = [
    {
        "name": "Serve",
        "hosts": "all",
        "gather_facts": False,
        "any_errors_fatal": True,
        "vars": {
            "profile_result": {
                "model": {
                    "base": "{{ node }}/lab-base",
                    "overlay": "{{ node }}/lab-mtp",
                    "path": "{{ node }}/lab-hybrid",
                },
                "tensor_parallel_size": 2,
                "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
            }
        },
        "tasks": [
            {
                "name": "Take the entry point",
                "ansible.builtin.import_role": {"name": "sparkrig.serving.checkpoint", "tasks_from": "{{ entry }}"},
            },
            {
                "name": "Keep the result",
                "ansible.builtin.copy": {
                    "content": "{{ checkpoint_result | to_json }}",
                    "dest": "{{ node }}/result.json",
                    "mode": "0644",
                },
                "check_mode": False,
                "changed_when": False,
            },
        ],
    }
]


@pytest.fixture
def nodes(tmp_path: Path) -> list[Path]:
    for node in ("spark1", "spark2"):
        for name, files in checkpoint.build(0).items():
            checkpoint.write(tmp_path / node / name, files)
    return [tmp_path / "spark1", tmp_path / "spark2"]


@pytest.fixture
def play(tmp_path: Path, nodes: list[Path]) -> t.Callable[..., str]:
    (tmp_path / "play.json").write_text(json.dumps(PLAYBOOK))
    connection = f"ansible_connection=local ansible_python_interpreter={sys.executable}"
    (tmp_path / "hosts").write_text("".join(f"{node.name} node={node} {connection}\n" for node in nodes))

    def play(*options: str, entry: str = "main", **variables: t.Any) -> str:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(tmp_path / "hosts"), *options]
        done = subprocess.run(
            [*command, "--extra-vars", json.dumps({"entry": entry, **variables}), str(tmp_path / "play.json")],
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": ".collections", "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout

    return play


def test_role_builds_once_and_hands_on_the_result(nodes: list[Path], play: t.Callable[..., str]) -> None:
    # The manifest and the hybrid.
    assert play("--check").count("changed=2") == 2
    assert play(entry="inspect").count("changed=0") == 2
    looked = [json.loads((node / "result.json").read_text()) for node in nodes]
    assert not (nodes[0] / "lab-hybrid").exists()
    assert play().count("changed=2") == 2
    assert play().count("changed=0") == 2
    results = [json.loads((node / "result.json").read_text()) for node in nodes]
    # What `site` leaves the main entry point out by.
    assert [result.pop("up_to_date") for result in looked] == [False, False]
    assert [result.pop("up_to_date") for result in results] == [True, True]
    assert results == looked
    assert results[0]["path"] == str(nodes[0] / "lab-hybrid")
    assert results[0]["files"] == 4
    assert results[0]["mtp"]["present"] is True
    assert len(results[0]["weights_bytes"]) == 2
    assert results[0]["config"]["architectures"] == ["DeepseekV3ForCausalLM"]
    assert results[0]["digest"] == results[1]["digest"]


def test_node_with_other_weights_is_named(nodes: list[Path], play: t.Callable[..., str]) -> None:
    config = json.loads((nodes[1] / "lab-base" / "config.json").read_text())
    checkpoint.write(nodes[1] / "lab-base", {"config.json": checkpoint.json_text({**config, "rope_theta": 1.0})})
    said = " ".join(play(checkpoint_spread=False).split())
    size = (nodes[0] / "lab-base" / "config.json").stat().st_size
    assert (
        f"The nodes do not hold the same checkpoint. spark2: 1 file of {nodes[1]}/lab-base ({size / 1024:.1f} KiB) to "
        "be copied: config.json. Copy them from spark1, or set checkpoint_spread to true."
    ) in said
    assert not (nodes[0] / "lab-hybrid").exists()


def test_checkpoint_that_nobody_has(nodes: list[Path], play: t.Callable[..., str]) -> None:
    for node in nodes:
        shutil.rmtree(node / "lab-mtp")
    for entry in ("inspect", "main"):
        said = " ".join(play(entry=entry).split())
        assert f"{nodes[0]}/lab-mtp" in said
        assert "checkpoint_download_command" in said


def test_what_is_whole_and_cannot_be_served_is_said_once_with_its_nodes(play: t.Callable[..., str]) -> None:
    said = " ".join(play(entry="inspect", checkpoint_tensor_parallel_size=3).split())
    assert "spark1, spark2: self_attn.q_b_proj.weight is 512 wide, which 3 ranks cannot split evenly" in said
    assert "fatal: [spark1]" in said
    assert "fatal: [spark2]" not in said


def test_only_extra_files_are_removed_and_only_when_asked(nodes: list[Path], play: t.Callable[..., str]) -> None:
    stray = nodes[1] / "lab-base" / "old.safetensors"
    stray.write_bytes(b"old")
    assert f"{stray}: no part of the checkpoint; removed with checkpoint_remove_unused: true" in " ".join(
        play().split()
    )
    assert stray.exists()
    play("--check", checkpoint_remove_unused=True)
    assert stray.exists()
    play(checkpoint_remove_unused=True)
    assert not stray.exists()
    assert not (nodes[1] / "lab-hybrid" / "old.safetensors").exists()
    assert (nodes[1] / "lab-base" / "config.json").exists()
