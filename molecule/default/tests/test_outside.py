# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fifth machine on the management network, outside the fabric: what of the rig answers it?"""

from __future__ import annotations

import json
import re
import resource
import typing as t

import pytest

from lab.common import lab_name, run
from lab.hosts import HOSTS, NODES
from lab.image import ensure_image
from lab.nodes import (
    LABEL,
    MANAGEMENT_BRIDGE,
    NODE_OPEN_FILES,
    NODE_PROCESSES,
    limit,
    runtime_options,
)

CONTAINER = f"sparkrig{lab_name()}-outside"
ADDRESS = "10.98.0.99/24"
API_PORT = 18089
TRY = """
import concurrent.futures, json, socket, sys, urllib.error, urllib.request
def answers_at(place):
    try:
        socket.create_connection(tuple(place), 3).close()
        return True
    except OSError:
        return False
places = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    answers = [place for place, answered in zip(places, pool.map(answers_at, places)) if answered]
status = {}
for name, headers in (("without", {}), ("wrong", {"Authorization": "Bearer wrong"})):
    try:
        urllib.request.urlopen(urllib.request.Request(sys.argv[2], headers=headers), timeout=5)
        status[name] = 200
    except urllib.error.HTTPError as error:
        status[name] = error.code
print(json.dumps([answers, status]))
"""


@pytest.fixture(scope="module")
def outside() -> t.Iterator[str]:
    """The fifth machine."""
    image = ensure_image()
    options = ["--detach", "--label", LABEL, "--name", CONTAINER, "--network", "none", "--privileged"]
    files, processes = limit(resource.RLIMIT_NOFILE, NODE_OPEN_FILES), limit(resource.RLIMIT_NPROC, NODE_PROCESSES)
    options += ["--ulimit", f"nofile={files}:{files}", "--ulimit", f"nproc={processes}:{processes}"]
    run(["podman", "rm", "--force", "--ignore", "--time", "0", CONTAINER])
    try:
        run(["podman", *runtime_options(), "run", *options, image, "sleep", "600"])
        pid = run(["podman", "inspect", "--format", "{{.State.Pid}}", CONTAINER]).stdout.decode().strip()
        run(["ip", "link", "add", "sr99-0", "type", "veth", "peer", "name", "eth0", "netns", pid])
        run(["ip", "link", "set", "sr99-0", "master", MANAGEMENT_BRIDGE, "up"])
        inside = ["nsenter", "--target", pid, "--net", "ip"]
        run([*inside, "address", "add", ADDRESS, "dev", "eth0"])
        run([*inside, "link", "set", "eth0", "up"])
        # A machine answers for all its addresses on every link, so the way to the rails' addresses leads over this one.
        for node in NODES:
            for rail in (1, 2):
                run([*inside, "route", "add", f"10.98.{rail}.{10 + node.index}", "via", node.management_ip])
        yield CONTAINER
    finally:
        run(["podman", "rm", "--force", "--time", "0", CONTAINER])


def test_only_ssh_and_the_api_answer_and_the_api_not_without_the_key(outside: str) -> None:
    asked = []
    expected = []
    for node in NODES:
        listening = HOSTS[node.name].check_output("ss -tlnH")
        ports = {int(match) for match in re.findall(r"^\S+\s+\d+\s+\d+\s+\S+:(\d+)\s", listening, re.MULTILINE)}
        assert len(ports) > 3, listening
        addresses = [node.management_ip, *(f"10.98.{rail}.{10 + node.index}" for rail in (1, 2))]
        asked += [[address, port] for address in addresses for port in sorted(ports)]
        wanted = {22, API_PORT} if node == NODES[0] else {22}
        expected += [[address, port] for address in addresses for port in wanted]
    url = f"http://{NODES[0].management_ip}:{API_PORT}/v1/models"
    answer = run(["podman", "exec", outside, "python3", "-c", TRY, json.dumps(asked), url]).stdout
    answers, status = json.loads(answer)
    assert sorted(answers) == sorted(expected)
    assert status == {"without": 401, "wrong": 401}


def test_no_process_of_the_rig_is_roots_or_has_the_key_in_its_command_line() -> None:
    key = HOSTS[NODES[0].name].check_output("sed -n 's/^VLLM_API_KEY=//p' /etc/sparkrig/secrets.env")
    for node in NODES:
        host = HOSTS[node.name]
        users = host.check_output(
            "for u in sparkrig-ray sparkrig-vllm; do"
            " cat /sys/fs/cgroup/systemd/system.slice/$u.service/cgroup.procs"
            " /sys/fs/cgroup/system.slice/$u.service/cgroup.procs 2>/dev/null"
            " || systemctl show -p MainPID --value $u.service; done"
            " | sort -u | while read p; do [ -d /proc/$p ] && stat -c %U /proc/$p; done | sort -u; true"
        )
        assert users.split() == ["sparkrig"], users
        assert key not in host.check_output("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
        assert key not in host.check_output("journalctl --no-pager -o cat 2>/dev/null | tail -n 20000")


def test_what_is_asked_and_answered_is_in_no_log() -> None:
    question = "zanzibar-4711"
    body = json.dumps({"model": "lab-moe", "prompt": question, "max_tokens": 2})
    host = HOSTS[NODES[0].name]
    host.check_output(
        "set -a; . /etc/sparkrig/secrets.env; python3 -c '"
        "import os,sys,urllib.request as r;"
        'r.urlopen(r.Request(sys.argv[1],data=sys.argv[2].encode(),headers={"Content-Type":"application/json",'
        '"Authorization":"Bearer "+os.environ["VLLM_API_KEY"]})).read()\''
        f" http://127.0.0.1:{API_PORT}/v1/completions '{body}'"
    )
    for node in NODES:
        found = HOSTS[node.name].check_output(
            f"journalctl --no-pager -o cat -u sparkrig-vllm -u sparkrig-ray | grep -c {question};"
            f" grep -rls {question} /var/lib/sparkrig | wc -l; true"
        )
        assert found.split() == ["0", "0"]
