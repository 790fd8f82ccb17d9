# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role bench on this machine, against a server that streams and counts as vLLM does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.engine import KEY, Engine, serving

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
PROFILE: dict[str, t.Any] = {
    "name": "small",
    "served_model_name": "lab-moe",
    "host": "0.0.0.0",
    "port": 1,
    "bench": {"prompt_tokens": [16, 40, 60], "concurrency": [1, 2], "output_tokens": 8, "requests": 2, "warmup": 1},
    "timeouts": {"completion_s": 10},
    "fit": {"device": "cpu"},
    "expect": {"tokens_per_s": [1.0, 100000.0], "source": "A guess."},
}


@pytest.fixture
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def play(folder: Path, url: str, *options: str, **variables: t.Any) -> subprocess.CompletedProcess[str]:
    """Run the role on two nodes that are this machine; the first one serves."""
    tasks = [
        {"name": "Measure", "ansible.builtin.import_role": {"name": "sparkrig.serving.bench"}},
        {"name": "Show", "ansible.builtin.debug": {"msg": "{{ bench_result.lines }}"}, "run_once": True},
    ]
    playbook = [
        {
            "name": "Bench",
            "hosts": "all",
            "gather_facts": False,
            "any_errors_fatal": True,
            "module_defaults": {"sparkrig.serving.bench_serving": {"api_key_file": str(folder / "secrets.env")}},
            "tasks": tasks,
        }
    ]
    (folder / "secrets.env").write_text(f"VLLM_API_KEY={KEY}\n")
    (folder / "play.json").write_text(json.dumps(playbook))
    connection = f"ansible_connection=local ansible_python_interpreter={sys.executable}"
    (folder / "hosts").write_text("".join(f"{name} {connection}\n" for name in ("spark1", "spark2")))
    given = {"bench_profile": PROFILE, "bench_url": url, "bench_report_dir": str(folder / "bench"), **variables}
    return subprocess.run(
        [
            *(str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(folder / "hosts")),
            *(str(folder / "play.json"), "--extra-vars", json.dumps(given), *options),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_is_kept_and_the_next_one_put_beside_it(tmp_path: Path, url: str) -> None:
    first = play(tmp_path, url)
    assert first.returncode == 0, first.stdout + first.stderr
    assert KEY not in first.stdout
    (path,) = (tmp_path / "bench").glob("small-*.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    shapes = [(point["prompt_tokens"], point["concurrency"], point["requests"]) for point in document["points"]]
    assert shapes == [(16, 1, 2), (16, 2, 2), (40, 1, 2), (40, 2, 2)]
    assert [point["problems"] for point in document["points"]] == [[]] * 4
    # 60 tokens in and 8 out are more than the server takes.
    assert len(document["left_out"]) == 2
    assert document["nodes"] == ["spark1", "spark2"]
    assert document["last"] is None
    assert document["expected"][0]["ratio"] == 1.0
    # The two lengths that are measured were warmed up once each.
    assert len(Engine.asked) == 4 * 2 + 2
    page = (tmp_path / "bench" / "bench.html").read_text(encoding="utf-8")
    assert "small: how fast is it?" in page and "Next to the last run" not in page

    # One that nobody could measure leaves everything as it was.
    kept = sorted(entry.name for entry in (tmp_path / "bench").iterdir())
    nothing = play(tmp_path, "http://127.0.0.1:9")
    assert nothing.returncode != 0
    assert "There is nothing to measure: /v1/models at http://127.0.0.1:9 does not answer" in " ".join(
        nothing.stdout.split()
    )
    assert sorted(entry.name for entry in (tmp_path / "bench").iterdir()) == kept

    # Its name has the second in which it was made.
    path.rename(path.with_name("small-20250101T000000Z.json"))
    again = play(tmp_path, url, bench_plan={**PROFILE["bench"], "prompt_tokens": [16], "warmup": 0})
    assert again.returncode == 0, again.stdout + again.stderr
    newest = json.loads(max((tmp_path / "bench").glob("small-*.json")).read_text(encoding="utf-8"))
    assert newest["last"]["date"] == document["date"]
    assert {row["prompt_tokens"] for row in newest["last"]["figures"]} == {16}
    assert "Next to the last run" in (tmp_path / "bench" / "bench.html").read_text(encoding="utf-8")


def test_a_dry_run_sends_nothing_and_writes_nothing(tmp_path: Path, url: str) -> None:
    outcome = play(tmp_path, url, "--check")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    said = " ".join(outcome.stdout.split())
    assert f"Would send 3 requests to lab-moe at {url}: 16 tokens in, 8 out, 1 at once" in said
    assert Engine.asked == []
    assert not (tmp_path / "bench").exists()


def test_the_watch_ends_and_leaves_nothing(tmp_path: Path, url: str) -> None:
    before = set(Path("/run").glob("sparkrig-bench-*"))
    over = {"__bench_over": str(tmp_path / "over-{{ inventory_hostname }}")}
    outcome = play(tmp_path, url, bench_watch_gpus=True, bench_plan={**PROFILE["bench"], "prompt_tokens": [16]}, **over)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (path,) = (tmp_path / "bench").glob("small-*.json")
    sentences = json.loads(path.read_text(encoding="utf-8"))["gpu_sentences"]
    assert [sentence.split(":")[0] for sentence in sentences] == ["spark1", "spark2"]
    assert "GPU" in sentences[0]
    assert list(tmp_path.glob("over-*")) == []
    assert set(Path("/run").glob("sparkrig-bench-*")) == before
