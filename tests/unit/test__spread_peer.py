# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies around a ring of nodes that are folders and loopback addresses of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path
from random import Random

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _spread_peer
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import (
    MANIFEST_FILE,
    partial_name,
    read_manifest,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._spread_peer import Peer
from ansible_collections.sparkrig.serving.plugins.modules import checkpoint_spread

SIZES = {"a.safetensors": 3_000_001, "b.safetensors": 2_500_000, "config.json": 700, "sub/c.txt": 5, "empty": 0}
IDLE_S = 2


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Ring:
    """Nodes n0, n1, ...; n0 has everything."""

    def __init__(self, root: Path, count: int, port: int) -> None:
        self.root = root
        self.count = count
        self.port = port
        random = Random(1)
        self.content = {name: random.randbytes(size) for name, size in SIZES.items()}
        for name, data in self.content.items():
            path = self.folder(0) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.lacks = {number: set(SIZES) for number in range(1, count)}

    def folder(self, number: int) -> Path:
        return self.root / f"n{number}"

    def job(self, number: int) -> dict[str, t.Any]:
        before, after = (number - 1) % self.count, (number + 1) % self.count
        need = sorted(self.lacks.get(number, ()))
        files = {
            name: {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in self.content.items()
        }
        return {
            "name": f"n{number}",
            "key": "k",
            "port": self.port,
            "listen": [f"127.0.{number}.1", f"127.0.{number}.2"],
            "before": {"name": f"n{before}", "addresses": [f"127.0.{before}.1", f"127.0.{before}.2"]} if need else None,
            "after": f"n{after}" if self.lacks.get(after) else None,
            "streams": 3,
            "idle_timeout_s": IDLE_S,
            "folders": [{"path": str(self.folder(number)), "files": files, "need": need}],
        }

    def run(self, *numbers: int) -> dict[int, dict[str, t.Any]]:
        """Run these nodes to their end; the last status of each."""
        last: dict[int, dict[str, t.Any]] = {}

        def run(number: int) -> None:
            Peer(self.job(number)).run(lambda status: last.__setitem__(number, status))

        threads = [threading.Thread(target=run, args=(number,)) for number in numbers or range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        return last

    def whole(self, number: int) -> bool:
        folder = self.folder(number)
        manifest = read_manifest(str(folder))
        return all(
            (folder / name).read_bytes() == data and manifest[name].sha256 == hashlib.sha256(data).hexdigest()
            for name, data in self.content.items()
            if name in self.lacks[number]
        ) and not list(folder.rglob(".*-part"))


@pytest.fixture(autouse=True)
def short_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spread_peer, "_FAREWELL_S", 1.0)


@pytest.fixture
def ring(tmp_path: Path, port: int) -> Ring:
    return Ring(tmp_path, 4, port)


def states(last: dict[int, dict[str, t.Any]]) -> dict[int, str]:
    return {number: status["state"] for number, status in sorted(last.items())}


def test_three_copies_each_link_carries_every_byte_once(ring: Ring) -> None:
    last = ring.run()
    assert states(last) == dict.fromkeys(range(4), "done")
    assert all(ring.whole(number) for number in (1, 2, 3))
    total = sum(SIZES.values())
    assert [last[number]["received_bytes"] for number in range(4)] == [0, total, total, total]
    assert (ring.folder(1) / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_interrupted_copy_is_continued(ring: Ring) -> None:
    for number, kept in ((1, 2_000_000), (2, 10), (3, 3_000_001)):
        ring.folder(number).mkdir()
        Path(partial_name(str(ring.folder(number) / "a.safetensors"))).write_bytes(ring.content["a.safetensors"][:kept])
    last = ring.run()
    assert all(ring.whole(number) for number in (1, 2, 3))
    total = sum(SIZES.values())
    assert [last[number]["received_bytes"] for number in (1, 2, 3)] == [
        total - 2_000_000,
        total - 10,
        total - 3_000_001,
    ]
    assert last[3]["kept_bytes"] == 3_000_001


def test_bytes_are_told_inside_a_file(ring: Ring) -> None:
    """Nobody gives anything here; what an interrupted copy left of one file is seen nevertheless."""
    ring.folder(1).mkdir()
    Path(partial_name(str(ring.folder(1) / "a.safetensors"))).write_bytes(ring.content["a.safetensors"][:2_000_000])
    last = ring.run(1)
    assert last[1]["message"] == "1.9 MiB of 5.2 MiB here, 0 of 5 files, 0 MB/s from n0"
    assert (last[1]["began_at"], last[1]["ended_at"]) == (None, None)


@pytest.mark.parametrize("garbage", [b"x" * 1000, b"x" * 4_000_000])
def test_a_part_that_is_not_ours_is_thrown_away(ring: Ring, garbage: bytes) -> None:
    ring.folder(1).mkdir()
    Path(partial_name(str(ring.folder(1) / "a.safetensors"))).write_bytes(garbage)
    assert states(ring.run()) == dict.fromkeys(range(4), "done")
    assert all(ring.whole(number) for number in (1, 2, 3))


def test_a_node_that_is_slow_to_see_that_its_part_is_not_ours(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes after it must not have taken the wrong bytes twice by then."""
    advance = _spread_peer.Progress.advance

    def slow(self: _spread_peer.Progress, available_bytes: int, anew: bool = False) -> None:
        advance(self, available_bytes, anew)
        if "/n1/" in self.path and available_bytes >= self.size_bytes - 1 and not self.generation:
            time.sleep(0.5)

    monkeypatch.setattr(_spread_peer.Progress, "advance", slow)
    ring.folder(1).mkdir()
    Path(partial_name(str(ring.folder(1) / "a.safetensors"))).write_bytes(b"x" * 1000)
    assert states(ring.run()) == dict.fromkeys(range(4), "done")
    assert all(ring.whole(number) for number in (1, 2, 3))


def test_a_damaged_copy_is_replaced_and_whoever_reads_it_keeps_the_old(ring: Ring) -> None:
    for number in (1, 2, 3):
        for name, data in ring.content.items():
            path = ring.folder(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    damaged = ring.folder(2) / "b.safetensors"
    damaged.write_bytes(b"y" * SIZES["b.safetensors"])
    os.link(damaged, ring.root / "held")
    ring.lacks = {2: {"b.safetensors"}}
    last = ring.run(1, 2)
    assert states(last) == {1: "done", 2: "done"}
    assert last[2]["received_bytes"] == SIZES["b.safetensors"]
    assert damaged.read_bytes() == ring.content["b.safetensors"]
    assert (ring.root / "held").read_bytes()[:3] == b"yyy"


def test_the_first_node_is_repaired_around_the_ring(ring: Ring) -> None:
    assert states(ring.run()) == dict.fromkeys(range(4), "done")
    (ring.folder(0) / "a.safetensors").unlink()
    ring.lacks = {0: {"a.safetensors"}}
    assert states(ring.run(3, 0)) == {0: "done", 3: "done"}
    assert ring.whole(0)


def test_a_whole_ring_in_which_everybody_takes_and_gives(ring: Ring) -> None:
    assert states(ring.run()) == dict.fromkeys(range(4), "done")
    ring.lacks = {
        number: {name} for number, name in enumerate(["a.safetensors", "b.safetensors", "config.json", "empty"])
    }
    for number, (name,) in ring.lacks.items():
        (ring.folder(number) / name).unlink()
    assert states(ring.run()) == dict.fromkeys(range(4), "done")
    assert all(ring.whole(number) for number in range(4))


def test_a_source_that_gives_another_content_is_named_to_all(ring: Ring) -> None:
    (ring.folder(0) / "b.safetensors").write_bytes(b"z" * SIZES["b.safetensors"])
    last = ring.run()
    assert states(last) == dict.fromkeys(range(4), "failed")
    sentence = f"{ring.folder(1)}/b.safetensors came to n1 twice with another SHA-256 than the manifest has"
    assert last[1]["sentence"].startswith(sentence)
    assert last[0]["sentence"] == last[1]["sentence"]
    for number in (1, 2, 3):
        assert not (ring.folder(number) / "b.safetensors").exists()


@pytest.mark.slow
def test_a_node_that_does_not_come_is_named(ring: Ring) -> None:
    last = ring.run(0, 2)
    assert states(last) == {0: "failed", 2: "failed"}
    assert re.match(
        r"^n1 does not answer n2 on port \d+ \(127\.0\.1\.\d: Connection refused\); see", last[2]["sentence"]
    )
    assert last[0]["sentence"].startswith(f"n1 has fetched nothing from n0 for {IDLE_S} s; see what holds it up")


def test_a_stranger_gets_nothing(ring: Ring) -> None:
    got = []

    def ask() -> None:
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", ring.port), timeout=5)
                break
            except OSError:
                continue
        with connection:
            connection.sendall(b'{"key": "wrong", "folder": 0, "name": "config.json", "offset": 0}\n')
            got.append(connection.recv(10))

    thread = threading.Thread(target=ask)
    thread.start()
    ring.run()
    thread.join()
    assert got == [b""]


@pytest.mark.parametrize("name", ["../n0/config.json", "/etc/passwd", "a/../../x", ""])
def test_names_outside_of_the_folder_are_refused(ring: Ring, name: str) -> None:
    job = ring.job(1)
    job["folders"][0]["files"] = {name: {"size_bytes": 1, "sha256": "0" * 64}}
    with pytest.raises(ValueError, match=r"^the job names the file .*, which does not lie below its folder"):
        Peer(job)


def test_no_address_to_listen_on(ring: Ring) -> None:
    job = {**ring.job(0), "listen": ["192.0.2.1"]}
    last: list[dict[str, t.Any]] = []
    assert not Peer(job).run(last.append)
    assert re.match(r"^n0 cannot listen on port \d+ \(192\.0\.2\.1: Cannot assign requested", last[-1]["sentence"])


@pytest.mark.slow
def test_the_archive_is_killed_at_random_points_and_goes_on(ring: Ring, tmp_path: Path) -> None:
    """As the unit runs it: a process for each node, from one file, with nothing but Python."""
    archive = tmp_path / "peer.pyz"
    checkpoint_spread.write_archive(str(archive))
    ring.content = {f"{number}.safetensors": os.urandom(16_000_000) for number in range(4)}
    for name, data in ring.content.items():
        (ring.folder(0) / name).write_bytes(data)
    ring.lacks = {number: set(ring.content) for number in range(1, 4)}
    random = Random(7)

    def start() -> list[subprocess.Popen[bytes]]:
        processes = []
        for number in range(4):
            job = {**ring.job(number), "idle_timeout_s": 30}
            # What is whole is not asked for again: the role looks at the manifests before it makes the jobs.
            have = read_manifest(str(ring.folder(number)))
            job["folders"][0]["need"] = [name for name in job["folders"][0]["need"] if number and name not in have]
            if number and not job["folders"][0]["need"]:
                job["before"] = None
            (tmp_path / f"{number}.json").write_text(json.dumps(job))
            command = [
                sys.executable,
                "-I",
                str(archive),
                str(tmp_path / f"{number}.json"),
                str(tmp_path / f"{number}.status"),
            ]
            processes.append(subprocess.Popen(command))
        return processes

    killed = 0
    for _attempt in range(6):
        processes = start()
        time.sleep(random.uniform(0.15, 0.4))
        for process in processes:
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        for number in (1, 2, 3):
            for name, data in ring.content.items():
                path = ring.folder(number) / name
                assert not path.exists() or path.read_bytes() == data
    assert killed >= 6
    for number in (1, 2, 3):
        # The last run repeats whole files too, so that all nodes have a part in it.
        for name in ring.content:
            (ring.folder(number) / name).unlink(missing_ok=True)
        (ring.folder(number) / MANIFEST_FILE).unlink(missing_ok=True)
    assert [process.wait(60) for process in start()] == [0] * 4
    assert all(ring.whole(number) for number in (1, 2, 3))
    assert json.loads((tmp_path / "3.status").read_text())["state"] == "done"
