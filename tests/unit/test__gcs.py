# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray's GCS asked in its own words, and a cluster that is complete told without Ray's library."""

from __future__ import annotations

import io
import json
import os
import platform
import socket
import struct
import sys
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils import _gcs, _ray_probe
from ansible_collections.sparkrig.serving.plugins.module_utils._ray import RayNode

ADDRESS = "10.98.1.11:26479"
HERE = {"python": platform.python_version(), "ray": "2.60.0"}


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 | 128]) + varint(number // 128)


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(ip: str, name: str, state: int = 0, death: str = "", gpus: float = 1.0) -> bytes:
    """A node as Ray 2.60 tells of it, with fields that nobody here reads."""
    pairs = {"CPU": 1.0, "GPU": gpus, "object_store_memory": 134217728.0, f"node:{ip}": 1.0}
    text = field(1, ip.encode()) + field(2, ip.encode()) + field(3, b"/sockets/raylet") + field(5, 26480)
    text += (field(7, state) if state else b"") + field(8, name.encode())
    text += b"".join(field(11, field(1, pair.encode()) + field(2, amount)) for pair, amount in pairs.items())
    text += field(23, 1795358580113) + (field(29, field(1, 2) + field(2, death.encode())) if death else b"")
    return text + varint(31 << 3) + varint(2**64 - 1) + varint(40 << 3 | 5) + b"abcd"


def frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    return len(data).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def said(nodes: list[bytes], cluster: t.Any = None, status: int = 0) -> list[bytes]:
    """Both messages."""
    metadata = {"ray_version": "2.60.0", "python_version": HERE["python"]} if cluster is None else cluster
    word = field(1, field(1, status) if status else b"")
    return [word + b"".join(field(2, one) for one in nodes), word + field(2, json.dumps(metadata).encode())]


def wire(messages: list[bytes]) -> bytes:
    """What the GCS sends: its settings and windows, each answer in two pieces, a trailer behind each."""
    out = frame(4, 0, 0, b"\0" * 6) + frame(8, 0, 0, b"\0\0\0\1") + frame(4, 1, 0) + frame(6, 0, 0, b"\0" * 8)
    for index, data in enumerate(messages):
        whole = message(data)
        out += frame(1, 4, 2 * index + 1, b"\x88") + frame(0, 0, 2 * index + 1, whole[:7])
        out += frame(0, 0, 2 * index + 1, whole[7:]) + frame(1, 5, 2 * index + 1, b"\xbe")
    return out


def answered(data: bytes) -> list[bytes]:
    return _gcs.answers(io.BytesIO(data).read)


def test_the_table_is_read() -> None:
    nodes = [node("10.98.1.12", "spark2"), node("10.98.1.13", "spark3", 1, "it missed its heartbeats", 0.0)]
    assert _gcs.understood(answered(wire(said(nodes)))) == (
        [
            RayNode("10.98.1.12", True, 1.0, 1.0, "", "spark2", b"10.98.1.12".hex()),
            RayNode("10.98.1.13", False, 0.0, 0.0, "it missed its heartbeats", "spark3", b"10.98.1.13".hex()),
        ],
        HERE,
    )


def test_the_questions_show_the_secret_and_are_two() -> None:
    asked = _gcs.questions(ADDRESS, "abc")
    assert asked.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert asked.count(b"\0\x0dauthorization\x0aBearer abc") == 2
    assert b"authorization" not in _gcs.questions(ADDRESS, None)
    # A length of 127 and more needs more than one byte.
    assert b"\x7f\x04Bearer " + b"k" * 124 in _gcs.questions(ADDRESS, "k" * 124)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the connection ended"),
        (wire(said([]))[:-4], "the connection ended"),
        (frame(3, 0, 1, b"\0\0\0\1"), "a frame of type 3"),
        (frame(7, 0, 0, b"\0" * 8), "a frame of type 7"),
        (frame(0, 8, 1, b"\1ab"), "a frame of type 0 and flags 8"),
        (frame(0, 0, 5, b"ab"), "on stream 5"),
        (frame(1, 5, 1) + frame(1, 5, 3), "it must be one message"),
        (frame(0, 1, 1, b"\1" + message(b"a")[1:]) + frame(0, 1, 3, message(b"")), "it must be one message"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        answered(data)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (said([], status=16), "its status 16"),
        (said([], cluster=[1]), r"it says|must be an object"),
        ([b"\x0a\x05ab", b""], "ends within a field"),
        ([b"\x0b", b""], "a field is of type 3"),
        ([field(2, 7), said([])[1]], "it must have a length"),
        ([field(2, field(11, field(2, b"abc"))), said([])[1]], "must be a float"),
    ],
)
def test_what_is_not_understood_is_refused(messages: list[bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _gcs.understood(messages)


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=2), st.binary(max_size=80))
def test_noise_is_never_more_than_refused(messages: list[bytes], data: bytes) -> None:
    for read in (lambda: _gcs.understood(messages), lambda: answered(data)):
        try:
            read()
        except ValueError:
            continue


@pytest.fixture(name="python")
def runtime_python(tmp_path: Path) -> str:
    """The interpreter of a runtime's tree that holds Ray."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (tmp_path / "lib" / version / "site-packages" / "ray-2.60.0.dist-info").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return str(tmp_path / "bin" / "python")


class Gcs:
    """Answers each connection with the same bytes, once both questions are there."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = b""
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _address = self.server.accept()
            except OSError:
                return
            with connection:
                heard = b""
                # Who only looks whether somebody listens says nothing.
                while heard.count(b"ray.rpc") < 2:
                    more = connection.recv(65536)
                    if not more:
                        break
                    heard += more
                else:
                    self.asked = heard
                    connection.sendall(self.data)


@pytest.fixture(name="gcs")
def complete_gcs() -> Iterator[Gcs]:
    gcs = Gcs(wire(said([node("10.98.1.11", "spark1"), node("10.98.1.12", "spark2")])))
    yield gcs
    gcs.server.close()


def probe(gcs: Gcs, python: str, tmp_path: Path, nodes: dict[str, str]) -> tuple[t.Any, list[list[str]]]:
    """What is told of the cluster, and what Ray's own library was asked for it."""
    token_file = tmp_path / "ray-token.env"
    token_file.write_text("RAY_AUTH_TOKEN=abc\n")
    asked: list[list[str]] = []

    def run_command(words: list[str], **_options: t.Any) -> tuple[int, str, str]:
        asked.append(words)
        return 0, '{"nodes": [], "cluster": {}, "here": {}}', ""

    return _ray_probe.probe_ray(run_command, python, gcs.address, nodes, str(token_file)), asked


def test_a_complete_cluster_is_told_without_rays_library(gcs: Gcs, python: str, tmp_path: Path) -> None:
    (state, problem), asked = probe(gcs, python, tmp_path, {"spark1": "10.98.1.11", "spark2": "10.98.1.12"})
    assert (state.ready, state.alive, problem, asked) == (True, ["10.98.1.11", "10.98.1.12"], "", [])
    assert (state.table.here, state.table.cluster) == (HERE, HERE)
    assert b"Bearer abc" in gcs.asked


def test_what_is_wrong_is_for_ray_to_say(gcs: Gcs, python: str, tmp_path: Path) -> None:
    three = {"spark1": "10.98.1.11", "spark2": "10.98.1.12", "spark3": "10.98.1.13"}
    two = {"spark1": "10.98.1.11", "spark2": "10.98.1.12"}
    assert [len(probe(gcs, python, tmp_path, nodes)[1]) for nodes in (three, {"spark1": "10.98.1.11"})] == [1, 1]
    # Another Ray on this node than in the cluster, and one whose version its files do not tell.
    packages = next((tmp_path / "lib").glob("*/site-packages"))
    (packages / "ray-2.60.0.dist-info").rename(packages / "ray-2.59.0.dist-info")
    assert len(probe(gcs, python, tmp_path, two)[1]) == 1
    (packages / "ray-2.60.0.dist-info").mkdir()
    assert _ray_probe.versions_at(python) is None
    assert _ray_probe.versions_at("/bin/sh") is None
    gcs.data = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    os.rmdir(packages / "ray-2.59.0.dist-info")
    assert len(probe(gcs, python, tmp_path, two)[1]) == 1
