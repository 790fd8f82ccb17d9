# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the README and the pages under ``docs/`` say is true: commands, links, figures and references."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit

PROJECT = Path(__file__).resolve().parent.parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
PLAYBOOKS = {path.stem for path in (PROJECT / "playbooks").glob("*.yml")}
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(page: Path) -> list[str]:
    """Every command in the page's ``sh`` blocks, comments taken away, continued lines joined."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("  #")[0].split(" # ")[0].strip()
            if words and not words.startswith("#"):
                found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            assert set(words[1:]) <= MAKE_TARGETS, command
        elif words[0] == "ansible-playbook":
            name = words[1].removeprefix("sparkrig.serving.").removesuffix(".yml")
            assert name in PLAYBOOKS, command
            inventories = [words[number + 1] for number, word in enumerate(words) if word == "-i"]
            assert all((PROJECT / inventory).is_dir() for inventory in inventories), command
        elif words[0] == "pytest":
            assert all((PROJECT / path).exists() for path in words[1:]), command
        else:
            assert words[0] in {"curl", "ansible-galaxy", "cp", "lab/beside.sh", "source", "tar", "sha256sum"}, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_fit_page_gives_the_planners_numbers() -> None:
    config = json.loads((PROJECT / "tests" / "fixtures" / "glm-5.2" / "config.json").read_text(encoding="utf-8"))
    question = {
        "config": config,
        "tensor_parallel_size": 4,
        "kv_cache_dtype": "fp8_ds_mla",
        "kv_cache_memory_bytes": 1_810_000_000,
        "engine": "dark-devotion",
        "compute_capability": "12.1",
        "attention_backend": "B12X_MLA_SPARSE",
        "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
    }
    text = (PROJECT / "docs" / "fit.md").read_text(encoding="utf-8")
    for dcp, context in ((1, 32768), (4, 131072)):
        plan = fit({**question, "decode_context_parallel_size": dcp, "max_model_len": context})
        for name in ("bytes_per_block", "num_blocks", "kv_cache_tokens"):
            assert f"{plan[name]:,}" in text
        assert f"{plan['bytes_per_token']:,} B a token" in text


@pytest.mark.slow
def test_the_reference_is_what_the_collection_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PROJECT / "docs" / "reference.py"), str(tmp_path)], cwd=PROJECT, check=True)
    stale = [
        page.name
        for page in sorted(tmp_path.iterdir())
        if page.read_text(encoding="utf-8") != (PROJECT / "docs" / "reference" / page.name).read_text(encoding="utf-8")
    ]
    assert stale == [], "run `make reference`"


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    # In strict mode a page that is missing or a link that leads nowhere is an error.
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
