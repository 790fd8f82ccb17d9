# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GLM-5.2 at TP4 in the public calculators that run offline, beside the truth and beside ours, in one run.

Every calculator answers a question of its own several times, as a new process, as a person would ask it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from lab.common import LabError, cache_dir
from tests.bench.question import BUDGET, QUESTION, TRUTH, cold_command
from tests.fixtures.glm52 import CONFIG

PACKAGES = ("sparkfit==0.5.0", "llm-mem-planner==0.2.2", "vramscout==0.7.0", "vllm-wizard==0.2.0")
SHORT, LONG = 131_072, 1_048_576
GIB = 2**30
ROUNDS = 3


@dataclass(frozen=True)
class Answer:
    """What one calculator says, and how long its quickest answer took. None: it refuses, and says why."""

    name: str
    seconds: float
    bytes_per_token: float | None = None
    tokens_dcp1: float | None = None
    tokens_dcp4: float | None = None
    refusal: str = ""


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
        answer = json.loads(run(folder, "sparkfit", "cluster", str(CONFIG), "-c", str(context), *options))
        used.append(answer["memory_gb"]["per_node_used"] * 1e9)
    return float(used[1] - used[0]) / (LONG - SHORT)


def llm_mem_planner(folder: Path) -> float:
    """Its latent cache and its indexer cache of one rank."""
    text = run(
        folder, "llm-mem-planner", "--config", str(CONFIG), "--tp", "4", "--seq-len", str(LONG), "--kv-dtype", "fp8"
    )
    sizes = re.findall(r"(?:kv|index)_per_rank=([0-9.]+) GiB", text)
    return sum(float(size) for size in sizes) * GIB / LONG


def vllm_wizard(folder: Path) -> float:
    """Its fp8 cache of one request over the four ranks."""
    options = ["--tp", "4", "--gpus", "4", "--vram-gb", "121", "--max-model-len", str(SHORT), "--json"]
    text = run(folder, "vllm-wizard", "plan", "--model", str(CONFIG.parent), "--kv-cache-dtype", "fp8_e4m3fn", *options)
    # It breaks long warnings into lines, which JSON does not allow.
    answer = json.loads(text, strict=False)
    return float(answer["feasibility"]["kv_cache_gb"]) * GIB / SHORT / 4


def vramscout(folder: Path) -> str:
    """Its refusal: it wants metadata from the hub."""
    options = ["--engine", "vllm", "--kv-dtype", "fp8", "--indexer-dtype", "fp8", "--tp", "4", "--context", str(SHORT)]
    text = run(
        folder, "vramscout", str(CONFIG.parent), *options, "--vram-gib", "121", "--calibration", "none", "--json"
    )
    return str(json.loads(text)["error"])


def ours() -> Answer:
    """Our answers at contexts that fill the budget."""
    options = {**QUESTION, "engine": "dark-devotion"}
    one, four = (
        fit({**options, "decode_context_parallel_size": dcp, "max_model_len": tokens})
        for dcp, tokens in ((1, TRUTH["tokens_dcp1"]), (4, TRUTH["tokens_dcp4"]))
    )
    question = json.dumps(QUESTION)
    seconds = quickest(lambda _folder: subprocess.run(cold_command(), input=question, text=True, check=True), CONFIG)
    per_token, tokens = float(one["bytes_per_token"]), [float(answer["kv_cache_tokens"]) for answer in (one, four)]
    return Answer("sparkrig kv_budget", seconds, per_token, tokens[0], tokens[1])


def quickest(ask: t.Callable[[Path], object], folder: Path) -> float:
    """Seconds of the quickest of some rounds."""
    rounds = []
    for _round in range(ROUNDS):
        started = time.perf_counter()
        ask(folder)
        rounds.append(time.perf_counter() - started)
    return min(rounds)


def commands() -> Path:
    """The folder of the calculators' commands, from the package index, kept in the cache."""
    digest = hashlib.sha256(" ".join([sys.version, *PACKAGES]).encode()).hexdigest()[:12]
    folder = cache_dir() / "bench" / f"calculators-{digest}"
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        uv = str(Path(sys.executable).parent / "uv")
        install = [uv, "pip", "install", "--quiet", "--system-certs", "--python", f"{folder}/bin/python", *PACKAGES]
        for command in ([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], install):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                words = done.stderr.strip().splitlines()
                raise LabError(f"the public calculators cannot be installed: {' | '.join(words[-2:])}")
        (folder / ".complete").touch()
    return folder / "bin"


def measure() -> list[Answer]:
    """Ours first. What a calculator cannot be asked for is its bytes for a token divided into the budget."""
    folder = commands()
    answers = [ours()]
    for name, ask, asked in (
        ("sparkfit 0.5.0", sparkfit, 2),
        ("llm-mem-planner 0.2.2", llm_mem_planner, 1),
        ("vllm-wizard 0.2.0", vllm_wizard, 1),
    ):
        per_token = ask(folder)
        # None of them knows DCP: they say the same for both.
        tokens = float(BUDGET // per_token)
        seconds = quickest(ask, folder) / asked
        answers.append(Answer(name, seconds, per_token, tokens, tokens))
    refusal = vramscout(folder)
    answers.append(Answer("vramscout 0.7.0", quickest(vramscout, folder), refusal=refusal))
    return answers
