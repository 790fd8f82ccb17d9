# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role on two nodes that are two folders of this machine: a context that was looked for, while it is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

NODES = ("spark1", "spark2")
PROFILE = {
    "name": "found",
    "tensor_parallel_size": 2,
    "max_model_len": -1,
    "max_num_seqs": 2,
    "max_num_batched_tokens": 512,
    "kv_cache_memory_bytes": "auto",
    "speculative_config": None,
    "environment": {},
    "fit": {"engine": "0.32.0", "device": "cpu", "overhead_bytes": 0, "reserve_bytes": 0},
}
CONFIG = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "max_position_embeddings": 4096,
}
PLAYBOOK = [
    {
        "name": "Fit",
        "hosts": "all",
        "gather_facts": False,
        "any_errors_fatal": True,
        # A node says that it serves as this machine's systemctl would, were there a unit.
        "environment": {"PATH": "{{ node }}/bin:{{ lookup('ansible.builtin.env', 'PATH') }}"},
        "vars": {"kv_budget_plan_path": "{{ node }}/plan.json", "kv_budget_config": CONFIG},
        "tasks": [{"name": "Take the role", "ansible.builtin.import_role": {"name": "sparkrig.serving.kv_budget"}}],
    }
]


@pytest.fixture
def play(tmp_path: Path) -> t.Callable[..., str]:
    (tmp_path / "play.json").write_text(json.dumps(PLAYBOOK))
    connection = f"ansible_connection=local ansible_python_interpreter={sys.executable}"
    (tmp_path / "hosts").write_text("".join(f"{name} node={tmp_path / name} {connection}\n" for name in NODES))
    for name in NODES:
        (tmp_path / name / "bin").mkdir(parents=True)

    def play(served: t.Sequence[bool], measured: t.Sequence[int]) -> str:
        for name, serves in zip(NODES, served):
            program = tmp_path / name / "bin" / "systemctl"
            program.write_text(f"#!/bin/sh\nexit {0 if serves else 3}\n")
            program.chmod(0o755)
        variables = {
            "kv_budget_profile": PROFILE,
            "kv_budget_memory_available_bytes": list(measured),
            "kv_budget_memory_total_bytes": [],
        }
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(tmp_path / "hosts")]
        done = subprocess.run(
            [*command, "--extra-vars", json.dumps(variables), str(tmp_path / "play.json")],
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": ".collections", "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        return " ".join(done.stdout.split())

    return play


def plans(folder: Path) -> list[dict[str, t.Any]]:
    """What is planned on each node."""
    return [json.loads((folder / name / "plan.json").read_text()) for name in NODES]


@pytest.mark.slow
def test_a_context_that_was_found_stays_while_it_is_served(tmp_path: Path, play: t.Callable[..., str]) -> None:
    said = play([False, False], [30_000_000, 28_000_000])
    # 379 blocks of 73,728 B fit the poorer node; one is held back, and two requests share the rest: 189 x 16 tokens.
    assert [plan["planned_model_len"] for plan in plans(tmp_path)] == [3_024, 3_024], said
    # While it is served, the memory that the model itself holds does not shorten the context.
    said = play([True, True], [9_000_000, 9_000_000])
    assert said.count("changed=0") == 2 and "This very plan is already being served" in said, said
    assert plans(tmp_path)[0]["planned_model_len"] == 3_024
    # A node that does not serve it any more: the memory decides again.
    play([True, False], [9_000_000, 9_000_000])
    assert [plan["planned_model_len"] for plan in plans(tmp_path)] == [960, 960]
