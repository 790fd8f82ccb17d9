# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the oracle: questions that our planner and vLLM's both answer."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_groups import Entry
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import StateShape
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import Geometry

VARIABLE = "SPARKRIG_ORACLE_PYTHON"
SERVER = Path(__file__).with_name("oracle_server.py")
OLD_SERVER = Path(__file__).with_name("planner_server.py")


class Oracle:
    """One running server, of the program *server*; *sources* are those of another version, whose planner it asks."""

    def __init__(self, sources: Path | None = None, server: Path = SERVER) -> None:
        python = os.environ.get(VARIABLE)
        if not python or not os.access(python, os.X_OK):
            raise RuntimeError(
                f"{VARIABLE} must name a Python interpreter that can import vllm 0.32.0 for CPU; it is {python!r}. "
                "`make test` builds one."
            )
        descriptor, name = tempfile.mkstemp(suffix=".log")
        self.log = Path(name)
        self.process = subprocess.Popen(
            [python, str(server)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            text=True,
            env=os.environ if sources is None else {**os.environ, "PYTHONPATH": str(sources)},
        )
        os.close(descriptor)

    def ask(self, op: str, **question: t.Any) -> dict[str, t.Any]:
        """The answer to one question."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"op": op, **question}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the oracle died: {self.log.read_text(encoding='utf-8')[-2000:]}")
        return t.cast("dict[str, t.Any]", json.loads(line))

    def close(self) -> None:
        """Ends the server."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.log.unlink()


def _state_description(geometry: Geometry, entry: Entry, shape: StateShape) -> dict[str, t.Any]:
    request = geometry.request
    tp = request.tensor_parallel_size
    width = shape.conv_width
    if shape.kind == "mamba2":
        groups = shape.groups if shape.groups % tp == 0 else tp
        width += 2 * groups * shape.group_width
    return {
        "shapes": [
            [width // tp, shape.kernel - 1 + request.speculative_tokens],
            [shape.heads // tp, shape.rows, shape.columns],
        ],
        "dtypes": ["bfloat16", shape.dtype or "bfloat16"],
        "padded_page": entry.spec.padded_page,
        "mode": geometry.state_mode,
        "draft_states": entry.spec.draft_states,
        "checkpoint_states": entry.spec.checkpoint_states,
    }


def describe(geometry: Geometry, entry: Entry) -> dict[str, t.Any]:
    """A cache as the server builds it anew from its dimensions, not from our sizes."""
    spec = entry.spec
    described = {"kind": spec.kind, "block_size": spec.block_size, "dtype": geometry.dtype, "window": spec.window}
    if spec.kind == "state":
        return {**described, **_state_description(geometry, entry, t.cast(StateShape, spec.identity[0]))}
    heads, key, value = spec.identity
    return {
        **described,
        "heads": heads,
        "key": key,
        "value": value,
        "stride": spec.stride,
        "kernel_rows": spec.kernel_rows,
    }


def plan_question(geometry: Geometry, budgets: t.Sequence[int], context: int) -> dict[str, t.Any]:
    """The question for vLLM's planner that belongs to a geometry."""
    request = geometry.request
    named = [(f"layers.{e.layer}.{e.spec.kind}.{n}", e) for n, e in enumerate(geometry.entries)]
    workers = []
    for first, end in geometry.stage_bounds:
        own = [(name, describe(geometry, entry)) for name, entry in named if first <= entry.layer < end]
        workers.extend([own] * request.tensor_parallel_size)
    return {
        "workers": workers,
        "available": list(budgets),
        "max_model_len": context,
        "derived_len": geometry.model.context,
        "tp": request.tensor_parallel_size,
        "dcp": request.decode_context_parallel_size,
        "block_size": geometry.block_size,
        "mode": geometry.state_mode,
        "in_flight": geometry.in_flight_tokens,
        "encoder_tokens": geometry.model.encoder_tokens,
        "device": request.device,
        "layout": request.kv_cache_layout,
        "override": request.num_gpu_blocks_override,
        "disable_hybrid": bool(request.disable_hybrid_kv_cache_manager),
    }
