# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint that only the first node has comes to all of them, whatever happens to it on the way.

The tests build on each other: what one leaves is what the next one finds. Where a copy is timed the rails are slowed
down so far that the link is what it waits for, and not two processors and one disk that four nodes have to share; the
checkpoint lies in the memory of each node for the same reason.
"""

from __future__ import annotations

import base64
import json
import re
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

# One shard of random bytes with a true header.
SHARD = """
import json, os, struct
def shard(path, name, size):
    header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header + os.urandom(size))
"""
# Eight shards, an index, a config, and an overlay of one shard more.
MAKE = f"""{SHARD}
os.makedirs("{BASE}"), os.makedirs("{ROOT}/overlay")
weight_map = {{}}
for number in range({SHARDS}):
    weight_map["model.layers.0.mlp.t%d" % number] = "model-%d.safetensors" % number
    shard("{BASE}/model-%d.safetensors" % number, "model.layers.0.mlp.t%d" % number, {SHARD_BYTES})
json.dump({{"weight_map": weight_map}}, open("{BASE}/model.safetensors.index.json", "w"))
json.dump({{"model_type": "lab", "num_hidden_layers": 1}}, open("{BASE}/config.json", "w"))
shard("{ROOT}/overlay/more.safetensors", "more", 1000)
"""
# `mkfs.btrfs --mixed` on 20 MiB, with the subvolumes base and served; packed, since it is nearly all zeros.
BTRFS = Path(__file__).with_name("btrfs.img.xz")
MOUNTED = "/srv/btrfs"
# A model of one shard in one subvolume.
MAKE_SMALL = f"""{SHARD}
os.mkdir("{MOUNTED}/base/model")
shard("{MOUNTED}/base/model/model.safetensors", "model.layers.0.mlp.t", 6_000_000)
json.dump({{"model_type": "lab", "num_hidden_layers": 1}}, open("{MOUNTED}/base/model/config.json", "w"))
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


def seconds_of_copy(*hosts: Host) -> float:
    """From the first byte on any of the hosts to the last whole file on all of them; their clock is one."""
    seen = [status(host) for host in hosts]
    return t.cast("float", max(one["ended_at"] for one in seen) - min(one["began_at"] for one in seen))


def sums(host: Host, folder: str = BASE) -> str:
    return root(host, f"cd {folder} && sha256sum *")


def forget(*hosts: Host) -> None:
    for host in hosts:
        root(host, f"rm -rf {BASE} {ROOT}/overlay {ROOT}/hybrid")


@pytest.fixture(scope="module", autouse=True)
def nodes() -> t.Iterator[None]:
    """A checkpoint on the first node; afterwards the nodes are as they were."""
    for host in HOSTS.values():
        root(host, f"umount -R {ROOT}; mkdir -p {ROOT} && mount -t tmpfs -o size=400m tmpfs {ROOT}")
    root(FIRST, f"python3 -c {shlex.quote(MAKE)}")
    yield
    slow_down(None)
    for host in HOSTS.values():
        host.run(f"systemctl stop {UNIT} sparkrig-ray.service; rm -f {RAY}; systemctl daemon-reload")
    outcome = run({"entry": "reset"})
    for host in HOSTS.values():
        root(host, f"umount {ROOT} && rmdir {ROOT}")
    assert outcome.code == 0, outcome.text


def test_three_copies_cost_little_more_than_one() -> None:
    succeed({"with_rails": True, "entry": "inspect"})
    slow_down("40mbit")
    one = succeed({"target": ",".join(NAMES[:2])})
    assert f"{NAMES[1]}: {SHARDS + 2} files of {BASE}" in " ".join(one.text.split())
    seconds_of_one = seconds_of_copy(SECOND)
    forget(SECOND)
    succeed()
    seconds_of_three = seconds_of_copy(SECOND, THIRD, FOURTH)
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
    # So it is with a node that comes back empty to a rig that serves: one sentence says all.
    outcome = run()
    assert outcome.code != 0, outcome.text
    text = " ".join(outcome.text.split())
    said = f"Nothing was copied, since Ray or vLLM run ({NAMES[1]} sparkrig-ray.service) and a copy would take their"
    assert said in text, text
    assert re.search(rf"{NAMES[3]}: \d+ files of {BASE} \(91\.6 MiB\) to be copied", text), text
    assert "Stop the rig (ansible-playbook sparkrig.serving.stop), then run again." in text, text
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


def test_what_a_hardlink_cannot_reach_shares_its_blocks() -> None:
    """Two subvolumes of a real btrfs, and an overlay on another file system."""
    image = base64.b64encode(BTRFS.read_bytes()).decode()
    unpack = f"import base64, lzma; open('{ROOT}/btrfs.img', 'wb').write(lzma.decompress(base64.b64decode('{image}')))"
    root(FIRST, f'python3 -c "{unpack}" && mkdir -p {MOUNTED} && mount -o loop {ROOT}/btrfs.img {MOUNTED}')
    try:
        root(FIRST, f"python3 -c {shlex.quote(MAKE_SMALL)} && sync -f {MOUNTED}")
        model, served = f"{MOUNTED}/base/model", f"{MOUNTED}/served/hybrid"
        used = f"df --output=used -B1 {MOUNTED} | tail -1"
        before = int(root(FIRST, used))
        variables = {"target": NAMES[0], "checkpoint_base": model, "checkpoint_path": served}
        outcome = succeed(variables, ("-v",))
        assert f"model.safetensors: cloned (reflink), as a hardlink cannot reach there, from {model}" in outcome.text
        assert f"more.safetensors: copied, as its file system is another one, from {ROOT}/overlay" in outcome.text
        assert int(root(FIRST, f"sync -f {MOUNTED} && {used}")) - before < 1_000_000
        shard = "sha256sum <{}/model.safetensors"
        good = root(FIRST, shard.format(model))
        assert root(FIRST, shard.format(served)) == good
        assert succeed(variables).changed == 0
        # Whatever is written to the one is not in the other.
        root(FIRST, f"printf x | dd of={served}/model.safetensors bs=1 seek=5000 conv=notrunc status=none")
        assert root(FIRST, shard.format(model)) == good != root(FIRST, shard.format(served))
    finally:
        root(FIRST, f"umount {MOUNTED}; rm -r {MOUNTED} {ROOT}/btrfs.img")


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
