# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two questions to Ray's GCS, answered in milliseconds: Ray's own library takes half a second of CPU to load for them.

Private to the collection. The GCS speaks gRPC, which is protobuf in HTTP/2. Only what the two questions need is spoken
here, and everything else is a ValueError: who asks then has Ray's library to ask with.
"""

from __future__ import annotations

import json
import socket
import struct
import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._ray import RayNode

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The types of HTTP/2's frames, and their flags.
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8
# What may come without another word from here: a table has about 1 KiB for each node, the dead ones included.
_WINDOW_BYTES = 2**24
# The numbers of the fields, from Ray's gcs.proto and gcs_service.proto.
_STATUS, _STATUS_CODE = 1, 1
_NODES, _VALUE = 2, 2
_NODE_ID, _ADDRESS, _STATE, _HOST_NAME, _RESOURCES, _DEATH, _DEATH_MESSAGE = 1, 2, 7, 8, 11, 29, 2
_ALIVE = 0

Field = t.Union[int, bytes]


def _frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    return len(data).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data


def _varint(number: int) -> bytes:
    out = b""
    while number >= 128:
        out += bytes([number % 128 | 128])
        number //= 128
    return out + bytes([number])


def _header_text(text: str) -> bytes:
    """A text of HPACK, with its length as a number of seven bits and more."""
    data = text.encode()
    return (bytes([len(data)]) if len(data) < 127 else b"\x7f" + _varint(len(data) - 127)) + data


def _text_field(number: int, text: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(text)) + text


# The table of nodes, and what the cluster was made with.
_QUESTIONS = (
    ("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", b""),
    ("/ray.rpc.InternalKVGcsService/InternalKVGet", _text_field(1, b"CLUSTER_METADATA") + _text_field(2, b"cluster")),
)


def questions(address: str, token: str | None) -> bytes:
    """Everything that is sent: both questions, on streams 1 and 3 of one connection."""
    out = _PREFACE + _frame(_SETTINGS, 0, 0, (4).to_bytes(2, "big") + _WINDOW_BYTES.to_bytes(4, "big"))
    out += _frame(_WINDOW_UPDATE, 0, 0, _WINDOW_BYTES.to_bytes(4, "big"))
    for index, (path, message) in enumerate(_QUESTIONS):
        headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": address}
        headers.update({"te": "trailers", "content-type": "application/grpc"})
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        # Literals that no table of headers remembers.
        block = b"".join(b"\0" + _header_text(name) + _header_text(value) for name, value in headers.items())
        out += _frame(_HEADERS, _END_HEADERS, 2 * index + 1, block)
        out += _frame(_DATA, _END_STREAM, 2 * index + 1, b"\0" + len(message).to_bytes(4, "big") + message)
    return out


def answers(read: Callable[[int], bytes]) -> list[bytes]:
    """The messages that come back, in the order of the questions. *read* gives so many bytes, less only at the end."""
    streams = {2 * index + 1: b"" for index in range(len(_QUESTIONS))}
    waiting = set(streams)
    while waiting:
        head = read(9)
        if len(head) < 9:
            raise ValueError("the connection ended before the answer did")
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        length = int.from_bytes(head[:3], "big")
        data = read(length) if length else b""
        if kind in (_RESET, _GOAWAY) or (kind == _DATA and (flags & _PADDED or stream not in streams)):
            raise ValueError(f"a frame of type {kind} and flags {flags} on stream {stream} came instead of an answer")
        if kind == _DATA:
            streams[stream] += data
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            waiting.discard(stream)
    for stream, data in streams.items():
        # One message, not compressed. A question that is refused is answered without any.
        if data[:1] != b"\0" or int.from_bytes(data[1:5], "big") != len(data) - 5:
            raise ValueError(f"the answer on stream {stream} is {data[:40]!r}; it must be one message")
    return [data[5:] for data in streams.values()]


def fields(message: bytes) -> Iterator[tuple[int, Field]]:
    """(number, value) of each field of a protobuf message; what has a length, or is no whole number, as bytes."""
    position = 0

    def take(length: int) -> bytes:
        nonlocal position
        position += length
        if position > len(message):
            raise ValueError(f"a message of {len(message)} bytes ends within a field")
        return message[position - length : position]

    def number() -> int:
        value = shift = 0
        while True:
            [byte] = take(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        elif key & 7 in (1, 5):
            yield key >> 3, take(8 if key & 7 == 1 else 4)
        elif key & 7 == 2:
            yield key >> 3, take(number())
        else:
            raise ValueError(f"a field is of type {key & 7}, which protobuf does not have any more")


def _data(value: Field) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"a field is the number {value}; it must have a length")
    return value


def _text(found: Mapping[int, Field], number: int) -> str:
    return _data(found.get(number, b"")).decode()


def _amount(value: Field) -> float:
    data = _data(value)
    if len(data) != 8:
        raise ValueError(f"an amount is {data!r}; it must be a float of 8 bytes")
    return float(struct.unpack("<d", data)[0])


def _node(message: bytes) -> RayNode:
    found = dict(fields(message))
    alive = found.get(_STATE, _ALIVE) == _ALIVE
    # A map: one field for each of its pairs. What a dead node offered counts no more.
    pairs = [dict(fields(_data(value))) for number, value in fields(message) if number == _RESOURCES and alive]
    offered = {_text(pair, 1): _amount(pair.get(2, b"\0" * 8)) for pair in pairs}
    return RayNode(
        ip=_text(found, _ADDRESS),
        alive=alive,
        cpus=offered.get("CPU", 0.0),
        gpus=offered.get("GPU", 0.0),
        death=_text(dict(fields(_data(found.get(_DEATH, b"")))), _DEATH_MESSAGE),
        name=_text(found, _HOST_NAME),
        node_id=_data(found.get(_NODE_ID, b"")).hex(),
    )


def understood(replies: list[bytes]) -> tuple[list[RayNode], dict[str, str]]:
    """The nodes, and the versions of Python and Ray that the cluster was made with, from both messages."""
    for reply in replies:
        status = dict(fields(_data(dict(fields(reply)).get(_STATUS, b""))))
        if status.get(_STATUS_CODE, 0) != 0:
            raise ValueError(f"the GCS answers with its status {status[_STATUS_CODE]!r}")
    nodes = [_node(_data(value)) for number, value in fields(replies[0]) if number == _NODES]
    said = json.loads(_text(dict(fields(replies[1])), _VALUE))
    if not isinstance(said, dict):
        raise ValueError(f"the cluster says that it is {said!r}; it must be an object of JSON")
    return nodes, {"python": str(said.get("python_version", "")), "ray": str(said.get("ray_version", ""))}


def ask_gcs(address: str, token: str | None, timeout_s: float = 3.0) -> tuple[list[RayNode], dict[str, str]]:
    """The same from the GCS at *address*; OSError or ValueError when it does not answer, or not in these words."""
    host, _colon, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        connection.sendall(questions(address, token))
        with connection.makefile("rb") as stream:
            return understood(answers(stream.read))
