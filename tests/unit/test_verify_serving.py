# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules verify_serving and serving_state against a small HTTP server that speaks like the engine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.modules import serving_state, verify_serving

KEY = "the-key"
RUNNING = "LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=7\nNRestarts=1\nInvocationID=a\n"
PLAN = {"num_blocks": 271, "kv_cache_tokens": 4336, "max_concurrency": 2.1171875}


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers like vLLM; the class attributes say how well it is."""

    drafts = 0.0
    drafting = True
    tokens = 16
    dead = False
    asked: t.ClassVar[list[dict[str, t.Any]]] = []

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(503 if self.dead else 200, "")
        elif self.path == "/metrics":
            self.reply(
                200,
                'vllm:cache_config_info{kv_cache_max_concurrency="2.1171875",kv_cache_size_tokens="4336",'
                f'num_gpu_blocks="271"}} 1.0\nvllm:spec_decode_num_drafts_total{{engine="0"}} {Engine.drafts}\n',
            )
        elif self.headers.get("Authorization") != f"Bearer {KEY}":
            self.reply(401, '{"error":"Unauthorized"}')
        else:
            self.reply(200, json.dumps({"data": [{"id": "lab-moe", "max_model_len": 2048}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Engine.asked.append(body)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self.reply(401, '{"error":"Unauthorized"}')
            return
        if self.dead:
            self.reply(500, "EngineCore encountered an issue")
            return
        if self.drafting:
            Engine.drafts += 9
        answer = {"choices": [{"message": {"content": "hello"}}], "usage": {"completion_tokens": self.tokens}}
        self.reply(200, json.dumps(answer))

    def log_message(self, *_args: t.Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Engine.drafts, Engine.drafting, Engine.tokens, Engine.dead = 0.0, True, 16, False
    Engine.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        # It looks that often whether it shall end.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def secrets(tmp_path: Path) -> str:
    path = tmp_path / "secrets.env"
    path.write_text(f"OTHER=1\nVLLM_API_KEY={KEY}\n")
    return str(path)


def verify(capsys: pytest.CaptureFixture[str], url: str, secrets: str, **options: t.Any) -> dict[str, t.Any]:
    arguments = {
        "url": url,
        "model": "lab-moe",
        "api_key_file": secrets,
        "plan": PLAN,
        "max_model_len": 2048,
        "drafts": True,
        "timeout_s": 5,
        "ray_file": "/nowhere/cluster.json",
        **options,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        verify_serving.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture(autouse=True)
def systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_command(_self: AnsibleModule, words: list[str], **_more: t.Any) -> tuple[int, str, str]:
        return 0, "ValueError: no room\n" if words[0] == "journalctl" else RUNNING, ""

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)


def failed(result: dict[str, t.Any]) -> list[str]:
    return [check["sentence"] for check in result["checks"] if not check["ok"]]


def test_served_as_planned(url: str, secrets: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = verify(capsys, url, secrets)
    assert (failed(result), result["ok"], result["changed"]) == ([], True, False)
    names = ["completion", "model", "max_model_len", "num_blocks", "kv_cache_tokens", "max_concurrency", "drafts"]
    assert [check["name"] for check in result["checks"]] == names
    assert (result["completion"], result["completion_tokens"], result["kv_cache_tokens"]) == ("hello", 16, 4336)
    assert KEY not in json.dumps(result)
    [body] = Engine.asked
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 16, "lab-moe")


def test_the_plan_may_be_what_was_written_down(
    url: str, secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({**PLAN, "kv_cache_tokens": 9999}))
    assert failed(verify(capsys, url, secrets, plan=None, plan_file=str(plan))) == [
        "The engine has 4336 KV tokens; the plan says 9999"
    ]
    # Without a plan nothing can be compared with it.
    nothing = verify(capsys, url, secrets, plan=None, plan_file=str(tmp_path / "none.json"))
    assert "kv_cache_tokens" not in [check["name"] for check in nothing["checks"]]


def test_every_deviation_is_told(url: str, secrets: str, capsys: pytest.CaptureFixture[str]) -> None:
    Engine.drafting = False
    result = verify(capsys, url, secrets, max_model_len=4096, plan={**PLAN, "num_blocks": 272})
    assert failed(result) == [
        "Requests may be 2048 tokens long; the plan says 4096",
        "The engine has 271 KV blocks; the plan says 272",
        "The engine made 0 drafts during the completion; the profile drafts, so it must be more than 0",
    ]


def test_a_dead_engine_and_a_wrong_key(url: str, secrets: str, capsys: pytest.CaptureFixture[str]) -> None:
    Engine.dead = True
    [sentence] = failed(verify(capsys, url, secrets))
    assert sentence.startswith("A completion failed after 0.")
    assert sentence.endswith(
        "/v1/chat/completions answered 500: EngineCore encountered an issue"
        " (sparkrig-vllm.service is active, restarted 1 times; it died of: ValueError: no room)"
    )
    Engine.dead = False
    [sentence] = failed(verify(capsys, url, "/nowhere/secrets.env"))
    assert '/v1/chat/completions answered 401: {"error":"Unauthorized"} (' in sentence


def test_nothing_listens(secrets: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = verify(capsys, "http://127.0.0.1:9", secrets)
    [sentence] = failed(result)
    assert "does not answer: [Errno 111] Connection refused" in sentence


def test_ray_is_asked_where_it_was_written_down(
    url: str, secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "cluster.json"
    cluster.write_text(json.dumps({"address": "127.0.0.1:9", "nodes": {"spark1": "127.0.0.1"}}))
    assert failed(verify(capsys, url, secrets, ray_file=str(cluster))) == [
        "Ray's GCS at 127.0.0.1:9 does not answer: Connection refused"
    ]


def test_the_ranks_of_vllms_own_executor_are_looked_for_instead(
    url: str, secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "cluster.json"
    cluster.write_text(json.dumps({"executor": "mp", "address": "127.0.0.1:9", "nodes": {"spark1": "127.0.0.1"}}))
    assert failed(verify(capsys, url, secrets, ray_file=str(cluster))) == [
        "0 of 1 ranks are connected to 127.0.0.1:9; missing: spark1 (127.0.0.1)"
    ]


# --- serving_state ---------------------------------------------------------------------------------------------------


def state(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shown: str,
    journal: str = "",
    **options: t.Any,
) -> dict[str, t.Any]:
    def run_command(_self: AnsibleModule, words: list[str], **_more: t.Any) -> tuple[int, str, str]:
        return 0, journal if words[0] == "journalctl" else shown, ""

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, required=False: name)
    with patch_module_args({"units": ["sparkrig-vllm.service"], **options}), pytest.raises(SystemExit):
        serving_state.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    assert result["changed"] is False
    assert 0 < result["memory_available_bytes"] <= result["memory_total_bytes"]
    return result


FAILED = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=start-limit-hit\nNRestarts=6\n"


def test_ready_means_that_the_api_answers(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = state(capsys, monkeypatch, RUNNING, health_url=f"{url}/health", restarts_seen=0)
    assert (good["ready"], good["failed_state"], good["health"], good["message"]) == (True, False, "200", "ready")
    Engine.dead = True
    bad = state(capsys, monkeypatch, RUNNING, health_url=f"{url}/health")
    assert (bad["ready"], bad["failed_state"], bad["health"]) == (False, False, "503")
    assert bad["message"].startswith("no answer from the API yet (503), ")
    assert bad["message"].endswith(" GiB of memory left")


def test_the_message_is_how_far_the_engine_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:00<00:00]\n"
    seen = state(capsys, monkeypatch, RUNNING, log, health_url="http://127.0.0.1:9/health", restarts_seen=1)
    assert seen["message"].startswith("loading weights, 2 of 4 shards, ")
    assert not seen["failed_state"]


def test_an_engine_that_died_is_told_with_its_own_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "ValueError: no room\nRuntimeError: Engine core initialization failed.\n"
    died = state(capsys, monkeypatch, RUNNING, log, health_url="http://127.0.0.1:9/health", restarts_seen=0)
    assert died["failed_state"]
    assert died["sentence"] == "ValueError: no room (sparkrig-vllm.service: it died and was restarted 1 times)"
    failed_unit = state(capsys, monkeypatch, FAILED, log, health_url="http://127.0.0.1:9/health")
    assert failed_unit["sentence"] == "ValueError: no room (sparkrig-vllm.service: systemd says start-limit-hit)"


def test_a_unit_that_is_absent_is_not_ready(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = state(capsys, monkeypatch, "LoadState=not-found\nActiveState=inactive\nSubState=dead\n")
    assert (seen["ready"], seen["message"]) == (False, "sparkrig-vllm.service is inactive (dead)")
    assert seen["units"]["sparkrig-vllm.service"]["load_state"] == "not-found"


def test_who_has_a_port_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = state(capsys, monkeypatch, RUNNING, ports=[f"127.0.0.1:{port}"], leftovers_under="/nowhere")
    [sentence] = result["ports_taken"]
    assert sentence.startswith(f"port {port} on 127.0.0.1 is taken by process {os.getpid()} (")
    assert state(capsys, monkeypatch, RUNNING)["ports_taken"] == []


def test_the_plan_is_told_with_the_memory_before_the_launch(
    capsys: pytest.CaptureFixture[str], url: str, secrets: str, tmp_path: Path
) -> None:
    plan = {**PLAN, "ranks": [{"rank": 0}, {"rank": 1}]}
    plan_file, readings = tmp_path / "plan.json", tmp_path / "readings.json"
    plan_file.write_text(json.dumps(plan))
    digest = hashlib.sha256(plan_file.read_bytes()).hexdigest()
    readings.write_text(json.dumps({"plan_sha256": digest, "available_bytes": [7, 8]}))
    options = {"plan": None, "plan_file": str(plan_file), "readings_file": str(readings)}
    ranks = verify(capsys, url, secrets, **options)["plan"]["ranks"]
    assert [rank["available_bytes"] for rank in ranks] == [7, 8]
    # Those of another plan say nothing about this one.
    plan_file.write_text(json.dumps({**plan, "num_blocks": 1}))
    assert "available_bytes" not in verify(capsys, url, secrets, **options)["plan"]["ranks"][0]
