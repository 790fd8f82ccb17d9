# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint that only the first node has comes to all of them, whatever happens to it on the way.

The tests build on each other: what one leaves is what the next one finds. The rails are slowed down so that the link
is what a copy waits for, as it is between Sparks whose disks are shared by nobody.
"""

from __future__ import annotations

import json
import shlex
import typing as t
from pathlib import Path

import pytest

from lab.hosts import HOSTS, NODES, Host
from lab.play import Outcome, play, play_until

PLAYBOOK = str(Path(__file__).parents[1] / "checkpoint.yml")
ROOT = "/srv/checkpoint"
BASE = f"{ROOT}/base"
UNIT = "sparkrig-spread.service"
RAY = "/run/systemd/system/sparkrig-ray.service"
RAILS = ("enp1s0f0np0", "enP2p1s0f0np0")
NAMES = [node.name for node in NODES]
FIRST, SECOND, THIRD, FOURTH = (HOSTS[name] for name in NAMES)
SHARDS = 8
SHARD_BYTES = 12_000_000

# Eight shards of random bytes with true headers, an index, a config, and an overlay of one shard more.
MAKE = f"""
import json, os, struct
def shard(path, name, size):
    header = json.dumps({{name: {{"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}}}).encode()
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header + os.urandom(size))
os.makedirs("{BASE}"), os.makedirs("{ROOT}/overlay")
weight_map = {{}}
for number in range({SHARDS}):
    weight_map["model.layers.0.mlp.t%d" % number] = "model-%d.safetensors" % number
    shard("{BASE}/model-%d.safetensors" % number, "model.layers.0.mlp.t%d" % number, {SHARD_BYTES})
json.dump({{"weight_map": weight_map}}, open("{BASE}/model.safetensors.index.json", "w"))
json.dump({{"model_type": "lab", "num_hidden_layers": 1}}, open("{BASE}/config.json", "w"))
shard("{ROOT}/overlay/more.safetensors", "more", 1000)
"""


def run(variables: dict[str, t.Any] | None = None, options: tuple[str, ...] = ()) -> Outcome:
    return play(PLAYBOOK, variables, options)


def succeed(variables: dict[str, t.Any] | None = None, options: tuple[str, ...] = ()) -> Outcome:
    outcome = run(variables, options)
    assert outcome.code == 0, outcome.text
    return outcome


def refuse(sentence: str, variables: dict[str, t.Any] | None = None) -> None:
    outcome = run(variables)
    assert outcome.code != 0, outcome.text
    assert sentence in " ".join(outcome.text.split()), outcome.text


def root(host: Host, command: str) -> str:
    return t.cast("str", host.check_output("sh -c %s", command))


def slow_down(rate: str | None) -> None:
    """Limit what every node sends on each rail."""
    for host in HOSTS.values():
        for rail in RAILS:
            host.run(f"tc qdisc del dev {rail} root")
            if rate:
                root(host, f"tc qdisc add dev {rail} root tbf rate {rate} burst 128k latency 100ms")


def status(host: Host) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads(root(host, "cat /run/sparkrig-spread/status.json")))


def sums(host: Host, folder: str = BASE) -> str:
    return root(host, f"cd {folder} && sha256sum *")


def forget(*hosts: Host) -> None:
    for host in hosts:
        root(host, f"rm -rf {ROOT}/base {ROOT}/overlay {ROOT}/hybrid")


@pytest.fixture(scope="module", autouse=True)
def nodes() -> t.Iterator[None]:
    """A checkpoint on the first node; afterwards the nodes are as they were."""
    forget(*HOSTS.values())
    root(FIRST, f"python3 -c {shlex.quote(MAKE)}")
    yield
    slow_down(None)
    for host in HOSTS.values():
        host.run(f"systemctl stop {UNIT} sparkrig-ray.service; rm -f {RAY}; systemctl daemon-reload")
    outcome = run({"entry": "reset"})
    forget(*HOSTS.values())
    assert outcome.code == 0, outcome.text


def test_three_copies_cost_little_more_than_one() -> None:
    succeed({"with_rails": True, "entry": "inspect"})
    slow_down("100mbit")
    one = succeed({"target": ",".join(NAMES[:2])})
    assert f"{NAMES[1]}: {SHARDS + 2} files of {BASE}" in " ".join(one.text.split())
    seconds_of_one = status(SECOND)["seconds"]
    forget(SECOND)
    succeed()
    seconds_of_three = max(status(host)["seconds"] for host in (SECOND, THIRD, FOURTH))
    print(f"one copy {seconds_of_one:.2f} s, three copies {seconds_of_three:.2f} s")
    assert len({sums(host) for host in HOSTS.values()}) == 1
    assert len({sums(host, f"{ROOT}/overlay") for host in HOSTS.values()}) == 1
    # Each link carried every byte once, and both rails were used.
    assert status(FOURTH)["received_bytes"] > SHARDS * SHARD_BYTES
    assert seconds_of_three <= 1.3 * seconds_of_one


def test_a_second_run_changes_nothing() -> None:
    assert succeed().changed == 0


def test_what_is_missing_cut_short_or_damaged_is_put_right() -> None:
    good = sums(FIRST)
    # A flipped byte that leaves size, time and inode as they were, on the first node and on another one.
    flip = (
        f"cd {BASE} && touch -r model-2.safetensors /run/when && "
        "printf x | dd of=model-2.safetensors bs=1 seek=5000 conv=notrunc status=none && "
        "touch -r /run/when model-2.safetensors && rm /run/when"
    )
    root(FIRST, flip)
    root(SECOND, flip.replace("model-2", "model-3"))
    root(THIRD, f"truncate -s 1000 {BASE}/model-1.safetensors")
    root(FOURTH, f"rm {BASE}/model-0.safetensors")
    outcome = succeed({"checkpoint_verify_full": True})
    assert {sums(host) for host in HOSTS.values()} == {good}
    assert status(FIRST)["received_bytes"] > SHARD_BYTES
    assert status(THIRD)["files"] == 1
    assert "model-1.safetensors" in outcome.text
    # The hybrid's links were made new as well.
    for host in HOSTS.values():
        assert sums(host, f"{ROOT}/hybrid").splitlines()[1:-2] == good.splitlines()[1:-1]


def test_a_copy_that_was_killed_is_continued() -> None:
    forget(SECOND, THIRD, FOURTH)
    slow_down("20mbit")
    play_until(PLAYBOOK, "checkpoint : spread | Wait", 4.0)
    root(THIRD, f"systemctl kill --signal=KILL {UNIT}")
    # Ray must not find a copy beside it: systemd ends the one when the other is started.
    root(SECOND, f"printf '[Service]\\nExecStart=/bin/sleep 600\\n' >{RAY} && systemctl daemon-reload")
    assert SECOND.service(UNIT).is_running
    root(SECOND, "systemctl start sparkrig-ray.service")
    assert not SECOND.service(UNIT).is_running
    sentence = (
        "sparkrig-ray.service runs on this node, and a copy would take its memory and its links; stop the rig first"
    )
    refuse(sentence)
    root(SECOND, f"systemctl stop sparkrig-ray.service && rm {RAY} && systemctl daemon-reload")
    slow_down(None)
    succeed()
    assert len({sums(host) for host in HOSTS.values()}) == 1
    kept = {name: status(HOSTS[name])["kept_bytes"] for name in NAMES[1:]}
    assert all(size > 0 for size in kept.values()), kept
    assert not root(FOURTH, f"find {ROOT} -name '.*-part'")


def test_a_node_without_room_stops_all_before_the_first_byte() -> None:
    forget(THIRD, FOURTH)
    root(FOURTH, f"mkdir -p {BASE} && mount -t tmpfs -o size=20m tmpfs {BASE}")
    try:
        refuse(f"{NAMES[3]} has 20.0 MiB free for {BASE}; what it lacks of the checkpoint takes 91.6 MiB")
        assert not THIRD.file(BASE).exists
        # A disk that fills up on the way: the copy stops with a sentence and is continued when there is room again.
        root(FOURTH, f"mount -o remount,size=120m {BASE}")
        fill = f"head -c 100m /dev/zero >{BASE}/.filler"
        root(FOURTH, f"(until ls {BASE}/.model*-part; do sleep 0.1; done; {fill}) >/dev/null 2>&1 &")
        slow_down("100mbit")
        refuse(f"{NAMES[3]} cannot go on: No space left on device")
        root(FOURTH, f"rm {BASE}/.filler")
        slow_down(None)
        outcome = succeed()
        assert status(FOURTH)["kept_bytes"] > 0
        assert sums(FOURTH) == sums(FIRST)
        # The folder to serve lies on another file system there.
        assert "Lay the overlay over the base" in outcome.text
        assert FOURTH.file(f"{ROOT}/hybrid/model-1.safetensors").size > SHARD_BYTES
    finally:
        root(FOURTH, f"rm -rf {ROOT}/hybrid; umount {BASE}")


def test_a_download_never_shows_its_token() -> None:
    root(FIRST, f"rm -rf /srv/mirror && mv {BASE} /srv/mirror && rm -rf /srv/mirror/.sparkrig*")
    forget(SECOND, THIRD, FOURTH)
    script = 'test "$HF_TOKEN" = open-sesame && cp -r /srv/mirror/. "$0" && echo "used $HF_TOKEN"'
    variables = {
        "checkpoint_download_command": {"base": ["sh", "-c", script, "{path}"]},
        "checkpoint_download_token": "open-sesame",
        "target": ",".join(NAMES[:2]),
    }
    refuse("Run ansible-playbook sparkrig.serving.checkpoint first", {**variables, "entry": "inspect"})
    # What the command line itself says is the caller's own; a vault would keep it.
    text = succeed(variables, ("-vvv",)).text
    assert "open-sesame" not in text.split("PLAY [", 1)[1].replace(json.dumps(script)[1:-1], "").replace(script, "")
    assert sums(FIRST) == sums(SECOND)
    root(FIRST, "rm -r /srv/mirror")
    assert "open-sesame" not in root(FIRST, "journalctl --no-pager")


def test_reset_leaves_the_checkpoint() -> None:
    before = sums(SECOND)
    succeed({"entry": "reset", "target": NAMES[1]})
    assert sums(SECOND) == before
    assert not SECOND.file(f"{ROOT}/hybrid").exists
    assert not root(SECOND, f"find {ROOT} -name '.sparkrig*'")
    assert succeed({"entry": "reset", "target": NAMES[1]}).changed == 0
