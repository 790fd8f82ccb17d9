# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules bench_serving and gpu_watch, the first against an HTTP server that streams and counts like the engine."""

from __future__ import annotations

import json
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _bench_client, _gpu_probe
from ansible_collections.sparkrig.serving.plugins.module_utils._engine_api import Api
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import total
from ansible_collections.sparkrig.serving.plugins.modules import bench_serving, gpu_watch
from tests.fixtures.engine import KEY, THINKS_S, Engine, serving

GPU = (Path(__file__).parents[1] / "fixtures/gpu/gb10.xml").read_text()


@pytest.fixture
def url() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def secrets(tmp_path: Path) -> str:
    path = tmp_path / "secrets.env"
    path.write_text(f"VLLM_API_KEY={KEY}\n")
    return str(path)


def bench(capsys: pytest.CaptureFixture[str], url: str, secrets: str, **options: t.Any) -> dict[str, t.Any]:
    arguments = {
        "url": url,
        "model": "lab-moe",
        "api_key_file": secrets,
        "prompt_tokens": 40,
        "output_tokens": 8,
        "timeout_s": 5,
        **options,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        bench_serving.main()
    out = capsys.readouterr().out
    assert KEY not in out
    result: dict[str, t.Any] = json.loads(out)
    return result


def test_a_point_is_measured(capsys: pytest.CaptureFixture[str], url: str, secrets: str) -> None:
    result = bench(capsys, url, secrets, concurrency=2, requests=4, warmup=1)
    assert result["changed"] is False
    assert result["version"] == "0.32.0+cpu"
    point = result["point"]
    assert (point["requests"], point["total_prompt_tokens"], point["total_output_tokens"]) == (4, 160, 32)
    # The warm-up is not counted; the engine counted what the client did.
    assert (point["engine"]["prompt_tokens"], point["engine"]["generation_tokens"]) == (160, 32)
    assert point["problems"] == []
    assert point["engine"]["acceptance"] == [1.0]
    assert THINKS_S <= point["ttft_s"]["min"] < 2
    assert point["tpot_s"]["min"] > 0
    assert point["seconds"] >= 2 * THINKS_S
    assert Engine.most_at_once == 2


def test_what_is_asked(capsys: pytest.CaptureFixture[str], url: str, secrets: str) -> None:
    bench(capsys, url, secrets, requests=3)
    prompts = [tuple(body["prompt"]) for body in Engine.asked]
    assert {len(prompt) for prompt in prompts} == {40}
    assert len(set(prompts)) == 3
    assert len({prompt[0] for prompt in prompts}) == 3
    for body in Engine.asked:
        assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"], body["stream"]) == (8, 8, True, True)
        assert "temperature" not in body


def test_check_mode_says_what_would_be_sent(capsys: pytest.CaptureFixture[str], url: str, secrets: str) -> None:
    result = bench(capsys, url, secrets, requests=3, warmup=1, _ansible_check_mode=True)
    assert result["sentence"] == (f"Would send 4 requests to lab-moe at {url}: 40 tokens in, 8 out, 1 at once")
    assert Engine.asked == []
    assert result["point"] is None


def test_a_point_that_is_too_long_is_left_out(capsys: pytest.CaptureFixture[str], url: str, secrets: str) -> None:
    result = bench(capsys, url, secrets, prompt_tokens=60)
    assert result["left_out"] is True
    assert result["sentence"] == ("Left out: 60 tokens in and 8 out are 68; the engine takes requests of 64")
    assert Engine.asked == []


def test_nothing_serves(capsys: pytest.CaptureFixture[str], secrets: str) -> None:
    result = bench(capsys, "http://127.0.0.1:9", secrets)
    assert result["failed"]
    assert result["msg"].startswith("There is nothing to measure: /v1/models at http://127.0.0.1:9 does not answer: ")
    assert "sparkrig.serving.serve" in result["msg"]


def test_something_else_serves(capsys: pytest.CaptureFixture[str], url: str, secrets: str) -> None:
    result = bench(capsys, url, secrets, model="glm-5.2")
    assert result["msg"].startswith("There is nothing to measure: lab-moe is served, not glm-5.2.")


def test_a_wrong_key(capsys: pytest.CaptureFixture[str], url: str, tmp_path: Path) -> None:
    result = bench(capsys, url, str(tmp_path / "none.env"))
    assert "/v1/models answered 401" in result["msg"]


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        ("refuses", "/v1/completions answered 400"),
        ("dies", "EngineCore encountered an issue"),
        ("cuts", "/v1/completions"),
    ],
)
def test_a_request_that_fails_is_no_figure(
    capsys: pytest.CaptureFixture[str], url: str, secrets: str, breaks: str, words: str
) -> None:
    Engine.breaks = breaks
    result = bench(capsys, url, secrets, requests=2)
    assert result["failed"]
    assert result["msg"].startswith("40 tokens in, 8 out, 1 at once: 1 of 2 requests failed, the first one: ")
    assert words in result["msg"]


@pytest.mark.parametrize(("name", "number"), [("output_tokens", 1), ("concurrency", 0), ("warmup", -1)])
def test_numbers_that_are_none(
    capsys: pytest.CaptureFixture[str], url: str, secrets: str, name: str, number: int
) -> None:
    assert f"{name} is {number}; it must be at least" in bench(capsys, url, secrets, **{name: number})["msg"]


def test_an_engine_that_counts_late_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(url, KEY)
    before = _bench_client.metrics(api)
    monkeypatch.setattr(_bench_client, "SETTLE_S", 60.0)
    threading.Timer(0.1, lambda: Engine.counted.update(requests=1)).start()
    assert total(_bench_client.settled(api, before, 1), "vllm:request_success_total") == 1
    # One that never does is not waited for for ever.
    monkeypatch.setattr(_bench_client, "SETTLE_S", 0.1)
    assert total(_bench_client.settled(api, before, 5), "vllm:request_success_total") == 1


def watch(capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    with patch_module_args({"every_s": 0.05, **options}), pytest.raises(SystemExit):
        gpu_watch.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> None:
    smi = _gpu_probe.Smi(lambda _words: (0, GPU, ""), "/usr/bin/nvidia-smi", "/nowhere")
    monkeypatch.setattr(gpu_watch, "smi_of", lambda _module: smi)


@pytest.mark.usefixtures("spark")
def test_gpus_are_watched_until_the_file_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    over = tmp_path / "over"
    threading.Timer(0.3, over.touch).start()
    result = watch(capsys, until=str(over))
    assert len(result["samples"]) >= 2
    first, last = result["samples"][0], result["samples"][-1]
    assert last["epoch_s"] - first["epoch_s"] > 0.2
    assert first["sm_clock_mhz"] > 0
    assert first["power_watts"] > 0
    assert result["changed"] is False


@pytest.mark.usefixtures("spark")
def test_a_watch_ends_by_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert len(watch(capsys, until=str(tmp_path / "never"), at_most_s=0)["samples"]) == 1
    assert len(watch(capsys, until=str(tmp_path / "never"), _ansible_check_mode=True)["samples"]) == 1


def test_no_gpu_is_an_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    smi = _gpu_probe.Smi(lambda _words: (0, "", ""), None, "/nowhere")
    monkeypatch.setattr(gpu_watch, "smi_of", lambda _module: smi)
    result = watch(capsys, until="/nowhere/over")
    assert result["samples"] == []
    assert "GPU" in result["sentence"]


def test_a_watch_without_pause_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(capsys, until="/nowhere", every_s=0)["msg"] == "every_s is 0; it must be more than 0."
