# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runtime, checkpoint, Ray and the served model, as a user of the cluster sees them."""

from __future__ import annotations

import json
import re
import shlex
import typing as t
import urllib.error
import urllib.request

import pytest

from lab.hosts import NODES, Host, environment

ENDPOINT = f"http://{NODES[0].management_ip}:18089"
BASE = "/srv/models/lab-base"
HYBRID = "/srv/models/lab-hybrid"
# The index of the first layer after the model's own three: the MTP layer.
MTP_PREFIX = "model.layers.3."


@pytest.fixture(scope="session")
def api_key(head: Host) -> str:
    return environment(head, "/etc/sparkrig/secrets.env")["VLLM_API_KEY"]


def call(path: str, key: str, body: dict[str, t.Any] | None = None) -> str:
    """What the API answers on *path*."""
    request = urllib.request.Request(
        ENDPOINT + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return t.cast("str", answer.read().decode())


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert values, f"{name} is not in /metrics"
    return sum(float(value) for value in values)


def test_every_node_runs_the_same_runtime(nodes: dict[str, Host]) -> None:
    links = {name: host.file("/opt/sparkrig/current").linked_to for name, host in nodes.items()}
    assert len(set(links.values())) == 1, links
    # The manifest has the SHA-256 of every file; each was compared with it when the tree was unpacked.
    manifests = {host.check_output("sha256sum < /opt/sparkrig/current/manifest.json") for host in nodes.values()}
    assert len(manifests) == 1


def test_the_runtime_is_the_patched_one(node: Host) -> None:
    code = "import vllm, vllm.platforms.cpu as p; print(vllm.__version__, p.CpuPlatform.ray_device_key)"
    # torch makes a folder of its own under /tmp as soon as it is imported; `reset` does not answer for a test.
    script = (
        "cache=$(mktemp -d); trap 'rm -r $cache' EXIT;"
        " TORCHINDUCTOR_CACHE_DIR=$cache VLLM_TARGET_DEVICE=cpu PYTHONDONTWRITEBYTECODE=1"
        f" /opt/sparkrig/current/bin/python -c {shlex.quote(code)} 2>/dev/null"
    )
    output = node.check_output("sh -c %s", script)
    version, key = output.split()[-2:]
    assert re.match(r"0\.32\.0\+cpu\b", version)
    assert key == "GPU"


def test_the_environment_is_the_same_on_all_nodes(nodes: dict[str, Host]) -> None:
    texts = {host.file("/etc/sparkrig/runtime.env").content_string for host in nodes.values()}
    assert len(texts) == 1
    assert environment(nodes[NODES[0].name], "/etc/sparkrig/runtime.env")["VLLM_TARGET_DEVICE"] == "cpu"


def test_the_hybrid_has_the_mtp_layer_that_the_base_only_promises(node: Host) -> None:
    promised = json.loads(node.file(f"{BASE}/config.json").content_string)["num_nextn_predict_layers"]
    assert promised == 1
    base = json.loads(node.file(f"{BASE}/model.safetensors.index.json").content_string)["weight_map"]
    hybrid = json.loads(node.file(f"{HYBRID}/model.safetensors.index.json").content_string)["weight_map"]
    assert not [tensor for tensor in base if tensor.startswith(MTP_PREFIX)]
    assert [tensor for tensor in hybrid if tensor.startswith(MTP_PREFIX)]


def test_the_hybrid_shares_its_shards_with_the_base(node: Host) -> None:
    output = node.check_output("cd %s && ls *.safetensors", BASE)
    shards = output.split()
    assert len(shards) >= 2
    for shard in shards:
        assert node.file(f"{BASE}/{shard}").inode == node.file(f"{HYBRID}/{shard}").inode


def test_ray_sees_four_nodes_with_a_cpu_and_a_gpu_each(head: Host, executor: str) -> None:
    if executor != "ray":
        # That its ranks are connected is compared by role verify.
        assert not re.search("gcs_server|raylet", head.check_output("ps -eo args"))
        return
    code = (
        "import json, ray; ray.init(address='10.98.1.11:26479', logging_level='ERROR', log_to_driver=False);"
        " print(json.dumps([[n['Alive'], n['NodeManagerAddress'], n['Resources']] for n in ray.nodes()]))"
    )
    files = "".join(f" . /etc/sparkrig/{name}.env;" for name in ("ray", "ray-token", "runtime", "fabric"))
    output = head.check_output(
        f"set -a;{files} set +a; /opt/sparkrig/current/bin/python -c {shlex.quote(code)} 2>/dev/null"
    )
    seen = [entry for entry in json.loads(output.splitlines()[-1]) if entry[0]]
    assert sorted(address for _alive, address, _resources in seen) == [f"10.98.1.{last}" for last in range(11, 15)]
    assert {(resources["CPU"], resources["GPU"]) for _alive, _address, resources in seen} == {(1.0, 1.0)}


def test_every_node_holds_a_rank(node: Host, executor: str) -> None:
    rank = r"ray::RayWorkerProc\.run" if executor == "ray" else r"VLLM::Worker_TP\d"
    # Niceness 0: a rank yields to nothing else on its node, although Ray would give it 15.
    processes = node.check_output("ps -eo ni,args").splitlines()
    found = [line for line in processes if re.fullmatch(rf"0 {rank}", line.strip())]
    assert len(found) == 1


def test_a_chat_completion_returns_text_and_drafts(api_key: str) -> None:
    before = metric(call("/metrics", api_key), "vllm:spec_decode_num_drafts_total")
    body = {
        "model": "lab-moe",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    answer = json.loads(call("/v1/chat/completions", api_key, body))
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] >= 1
    assert metric(call("/metrics", api_key), "vllm:spec_decode_num_drafts_total") > before


def test_the_engine_holds_the_tokens_that_were_predicted(api_key: str, plan: dict[str, t.Any]) -> None:
    (labels,) = re.findall(r"^vllm:cache_config_info\{(.*)\} ", call("/metrics", api_key), re.MULTILINE)
    seen = dict(re.findall(r'(\w+)="([^"]*)"', labels))
    assert plan["kv_cache_tokens"] == 4336
    assert int(seen["kv_cache_size_tokens"]) == plan["kv_cache_tokens"]
    assert int(seen["num_gpu_blocks"]) == plan["num_blocks"] == 271


def test_the_api_wants_the_key() -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        call("/v1/models", "not the key")
    assert refused.value.code == 401


def test_the_key_is_in_no_command_line(head: Host, api_key: str) -> None:
    assert api_key not in head.check_output("ps -eo args")
    assert head.file("/etc/sparkrig/secrets.env").mode == 0o600
