# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GLM-5.2 at TP4 in the public calculators that run offline, beside the truth and beside ours, in one run.

    python -m tests.bench.rivals [FOLDER OF THEIR COMMANDS]

Without a folder they are installed into a temporary environment. The truth is what engines logged:
1,810,000,000 B a rank hold 33,024 tokens at DCP1 and 132,096 at DCP4, 54,728 B for each token.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit

FIXTURE = Path(__file__).parents[1] / "fixtures/glm-5.2/config.json"
PACKAGES = ("sparkfit==0.5.0", "llm-mem-planner==0.2.2", "vramscout==0.7.0", "vllm-wizard==0.2.0")
BUDGET = 1_810_000_000
TRUTH_PER_TOKEN = 54_728
TRUTH_TOKENS = {1: 33_024, 4: 132_096}
SHORT, LONG = 131_072, 1_048_576
GIB = 2**30


def run(folder: Path, *command: str) -> str:
    """What a calculator prints; it may not reach for the network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(folder / command[0]), *command[1:]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def sparkfit(folder: Path) -> float:
    """Its memory of a node at two contexts; the slope holds the cache and whatever else grows with the context."""
    used = []
    for context in (SHORT, LONG):
        options = [
            "-N",
            "4",
            "--parallelism",
            "tp",
            "-q",
            "nvfp4",
            "--kv-dtype",
            "fp8",
            "--weights-gb",
            "410",
            "--json",
        ]
        answer = json.loads(run(folder, "sparkfit", "cluster", str(FIXTURE), "-c", str(context), *options))
        used.append(answer["memory_gb"]["per_node_used"] * 1e9)
    return float(used[1] - used[0]) / (LONG - SHORT)


def llm_mem_planner(folder: Path) -> float:
    """Its latent cache and its indexer cache of one rank."""
    text = run(
        folder, "llm-mem-planner", "--config", str(FIXTURE), "--tp", "4", "--seq-len", str(LONG), "--kv-dtype", "fp8"
    )
    sizes = re.findall(r"(?:kv|index)_per_rank=([0-9.]+) GiB", text)
    return sum(float(size) for size in sizes) * GIB / LONG


def vllm_wizard(folder: Path) -> float:
    """Its fp8 cache of one request over the four ranks."""
    options = ["--tp", "4", "--gpus", "4", "--vram-gb", "121", "--max-model-len", str(SHORT), "--json"]
    text = run(
        folder, "vllm-wizard", "plan", "--model", str(FIXTURE.parent), "--kv-cache-dtype", "fp8_e4m3fn", *options
    )
    # It breaks long warnings into lines, which JSON does not allow.
    answer = json.loads(text, strict=False)
    return float(answer["feasibility"]["kv_cache_gb"]) * GIB / SHORT / 4


def vramscout(folder: Path) -> str:
    """Its refusal: it wants metadata from the hub."""
    options = ["--engine", "vllm", "--kv-dtype", "fp8", "--indexer-dtype", "fp8", "--tp", "4", "--context", str(SHORT)]
    text = run(
        folder, "vramscout", str(FIXTURE.parent), *options, "--vram-gib", "121", "--calibration", "none", "--json"
    )
    return str(json.loads(text)["error"])


def ours(dcp: int) -> dict[str, t.Any]:
    """Our answer for one DCP, at a context that fills the budget."""
    return fit(
        {
            "config": json.loads(FIXTURE.read_text(encoding="utf-8")),
            "engine": "dark-devotion",
            "tensor_parallel_size": 4,
            "decode_context_parallel_size": dcp,
            "kv_cache_dtype": "fp8_ds_mla",
            "kv_cache_memory_bytes": BUDGET,
            "max_model_len": TRUTH_TOKENS[dcp],
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
        }
    )


def line(name: str, per_token: float, tokens: dict[int, float]) -> str:
    """One row: bytes for a token, tokens at DCP1 and DCP4, each with its error."""
    cells = [f"{per_token:>10,.0f} ({100 * per_token / TRUTH_PER_TOKEN - 100:+.1f} %)"]
    cells += [f"{count:>9,.0f} ({100 * count / TRUTH_TOKENS[dcp] - 100:+.1f} %)" for dcp, count in tokens.items()]
    return f"{name:<24}" + "".join(f"{cell:>24}" for cell in cells)


def table(folder: Path) -> list[str]:
    """All rows. What a calculator cannot be asked for is its bytes for a token divided into the budget."""
    rows = [f"{'':<24}{'bytes a token':>24}{'tokens at DCP1':>24}{'tokens at DCP4':>24}"]
    answers = {dcp: ours(dcp) for dcp in TRUTH_TOKENS}
    rows.append(
        line("sparkrig kv_budget", answers[1]["bytes_per_token"], {d: a["kv_cache_tokens"] for d, a in answers.items()})
    )
    calculators = {
        "sparkfit 0.5.0 (slope)": sparkfit,
        "llm-mem-planner 0.2.2": llm_mem_planner,
        "vllm-wizard 0.2.0": vllm_wizard,
    }
    for name, ask in calculators.items():
        per_token = ask(folder)
        # None of them knows DCP: they say the same for both.
        rows.append(line(name, per_token, dict.fromkeys(TRUTH_TOKENS, BUDGET // per_token)))
    rows.append(f"{'vramscout 0.7.0':<24}  refuses: {vramscout(folder)}")
    return rows


def main() -> None:
    """Prints the table."""
    if len(sys.argv) > 1:
        print("\n".join(table(Path(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["uv", "venv", "-q", name], check=True)
        subprocess.run(["uv", "pip", "install", "-q", "--python", f"{name}/bin/python", *PACKAGES], check=True)
        print("\n".join(table(Path(name) / "bin")))


if __name__ == "__main__":
    main()
