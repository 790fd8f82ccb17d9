# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a pair of nodes carries over its rails: bandwidth and latency, by perftest over RDMA or by plain TCP.

All nodes run this at once. A tournament puts every node into one pair a round, so N nodes take N - 1 rounds although
they have N * (N - 1) / 2 pairs. The two ends of a pair meet on a control connection, which is also what keeps nodes
that run ahead waiting for their partner.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import threading
import time
import typing as t
from dataclasses import asdict, dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import Rail

CHUNK_BYTES = 1 << 20
MESSAGE_BYTES = 64
MESSAGES = 500
# How long one end waits for the other beyond what the measurement itself takes.
PATIENCE_S = 60.0


@dataclass(frozen=True)
class End:
    """A rail as one end of a pair sees it: the own rail, that of the peer, and the own RDMA device if there is one."""

    own: Rail
    peer: Rail
    device: str = ""
    gid_index: int = -1


@dataclass(frozen=True)
class Measurement:
    """What one pair carried."""

    client: str
    server: str
    transport: str
    rail_gbps: dict[str, float]  # by the client's interface, one rail at a time
    total_gbps: float  # all rails at once
    latency_us: dict[str, float]  # one way, by the client's interface

    def as_dict(self) -> dict[str, t.Any]:
        """What the module returns."""
        return asdict(self)


def rounds(nodes: t.Sequence[str]) -> list[list[tuple[str, str]]]:
    """Every pair of nodes once, in rounds in which no node is twice: the circle of a round-robin tournament."""
    circle: list[str | None] = list(nodes)
    if len(circle) % 2:
        circle.append(None)  # whoever meets it has a break
    half = len(circle) // 2
    order = {node: number for number, node in enumerate(nodes)}
    result = []
    for _round in range(len(circle) - 1):
        pairs = []
        for one, other in zip(circle[:half], reversed(circle[half:])):
            if one is not None and other is not None:
                pairs.append((one, other) if order[one] < order[other] else (other, one))
        result.append(pairs)
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return result


def _row(output: str, header: str) -> dict[str, float]:
    """The last row of numbers under a header line of perftest, by the names in the header."""
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if line.strip().startswith("#bytes") and header in line:
            # Units stand in brackets: "BW average[Gb/sec]", "t_typical[usec]", "99% percentile[usec]".
            names = re.findall(r"(#bytes|#iterations|BW peak|BW average|MsgRate|t_\w+|\S+ percentile)", line)
            for row in lines[number + 1 :]:
                numbers = re.findall(r"[-+]?\d+(?:\.\d+)?", row)
                if len(numbers) >= 3 and re.fullmatch(r"[\s\d.+-]+", row):
                    return dict(zip(names, map(float, numbers)))
    raise ValueError(f"perftest printed no line of numbers: {' '.join(output.split())[-300:] or 'nothing'}")


def parse_bandwidth(output: str) -> float:
    """The average in Gb/s that ``ib_write_bw --report_gbits`` printed."""
    if "Gb/sec" not in output:
        raise ValueError(f"ib_write_bw printed no Gb/sec: {' '.join(output.split())[-300:] or 'nothing'}")
    return _row(output, "BW average")["BW average"]


def parse_latency(output: str) -> float:
    """The typical time one way in microseconds that ``ib_write_lat`` printed."""
    return _row(output, "t_typical")["t_typical"]


def threshold_problems(measured: Measurement, thresholds: t.Mapping[str, t.Any]) -> list[str]:
    """What of a pair is not as good as it must be, and by how much."""
    wanted = thresholds.get(measured.transport) or {}
    unknown = sorted(set(wanted) - {"rail_gbps", "total_gbps", "latency_us"})
    if unknown:
        raise ValueError(
            f"fabric_bandwidth_thresholds.{measured.transport} has {', '.join(unknown)}; known are rail_gbps,"
            " total_gbps and latency_us."
        )
    pair = f"{measured.client} to {measured.server}"
    problems = []
    least = float(wanted.get("rail_gbps") or 0)
    for interface, gbps in measured.rail_gbps.items():
        if gbps < least:
            problems.append(
                f"{pair} over {interface}: {gbps:.1f} Gb/s, {100 * (1 - gbps / least):.0f} % below the {least:g}"
                " needed. Check this cable, the speed of its switch port, and the PCIe lanes of both functions."
            )
    least = float(wanted.get("total_gbps") or 0)
    if measured.total_gbps < least:
        problems.append(
            f"{pair} over all rails at once: {measured.total_gbps:.1f} Gb/s,"
            f" {100 * (1 - measured.total_gbps / least):.0f} % below the {least:g} needed. About half means that both"
            " rails share one function or a switch port of half the speed."
        )
    most = float(wanted.get("latency_us") or 0)
    for interface, latency in measured.latency_us.items():
        if most and latency > most:
            problems.append(
                f"{pair} over {interface}: {latency:.1f} us one way, {100 * (latency / most - 1):.0f} % above the"
                f" {most:g} allowed."
            )
    return problems


class Control:
    """Lines of JSON between the two ends of a pair."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.reader = connection.makefile("r", encoding="utf-8")

    def send(self, message: t.Mapping[str, t.Any]) -> None:
        self.connection.sendall((json.dumps(message) + "\n").encode())

    def receive(self) -> dict[str, t.Any]:
        line = self.reader.readline()
        if not line:
            raise OSError("the other end hung up")
        message: dict[str, t.Any] = json.loads(line)
        return message

    def close(self) -> None:
        self.reader.close()
        self.connection.close()


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.settimeout(PATIENCE_S)
    listener.bind((address, port))
    listener.listen(4)
    return listener


def _connect(source: str, address: str, port: int) -> socket.socket:
    """Connect, waiting for a partner that is not there yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=5, source_address=(source, 0))
            connection.settimeout(PATIENCE_S)
            return connection
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def _at_once(work: t.Callable[[int], float], numbers: t.Sequence[int]) -> dict[int, float]:
    """The same work for several rails at the same time. What fails in one fails as a whole."""
    results: dict[int, float] = {}
    errors: list[Exception] = []

    def run(number: int) -> None:
        try:
            results[number] = work(number)
        except (OSError, ValueError) as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Tcp:
    """Bandwidth and latency over plain sockets, for rails without RDMA."""

    def __init__(self, ends: t.Sequence[End], port: int, seconds: float, server: bool) -> None:
        self.ends, self.port, self.seconds = ends, port, seconds
        self.listeners = (
            [_listen(end.own.address, port + 1 + number) for number, end in enumerate(ends)] if server else []
        )

    def serve(self, kind: str, numbers: t.Sequence[int]) -> t.Callable[[], dict[int, float]]:
        """Get ready; the result waits for the client to be done and says what arrived."""
        results: dict[int, float] = {}

        def work(number: int) -> float:
            connection, _peer = self.listeners[number].accept()
            connection.settimeout(PATIENCE_S)
            with connection:
                if kind == "lat":
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    while True:
                        message = connection.recv(MESSAGE_BYTES)
                        if not message:
                            return 0.0
                        connection.sendall(message)
                received, began, buffer = 0, 0.0, bytearray(CHUNK_BYTES)
                while True:
                    size = connection.recv_into(buffer)
                    if not size:
                        break
                    began = began or time.monotonic()
                    received += size
                return received * 8 / 1e9 / max(time.monotonic() - began, 1e-6)

        thread = threading.Thread(target=lambda: results.update(_at_once(work, numbers)))
        thread.start()

        def finish() -> dict[int, float]:
            thread.join()
            return results

        return finish

    def ask(self, kind: str, numbers: t.Sequence[int]) -> dict[int, float]:
        """The client's half."""

        def work(number: int) -> float:
            end = self.ends[number]
            with _connect(end.own.address, end.peer.address, self.port + 1 + number) as connection:
                if kind == "lat":
                    return self.latency(connection)
                chunk, deadline = bytes(CHUNK_BYTES), time.monotonic() + self.seconds
                while time.monotonic() < deadline:
                    connection.sendall(chunk)
            return 0.0

        return _at_once(work, numbers)

    @staticmethod
    def latency(connection: socket.socket) -> float:
        """Half of the typical time there and back, in microseconds."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times, message = [], bytes(MESSAGE_BYTES)
        for _message in range(MESSAGES):
            began = time.perf_counter()
            connection.sendall(message)
            left = MESSAGE_BYTES
            while left:
                left -= len(connection.recv(left)) or left
            times.append(time.perf_counter() - began)
        return statistics.median(times) / 2 * 1e6

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()


class Perftest:
    """Bandwidth and latency over RDMA, by ib_write_bw and ib_write_lat."""

    def __init__(self, ends: t.Sequence[End], port: int, seconds: float, server: bool) -> None:
        self.ends, self.port, self.seconds, self.server = ends, port, seconds, server
        self.started: list[subprocess.Popen[str]] = []

    def command(self, kind: str, number: int) -> list[str]:
        """The command of one end."""
        end = self.ends[number]
        command = ["ib_write_lat", "-n", "5000"]
        if kind == "bw":
            command = ["ib_write_bw", "--report_gbits", "-D", str(max(1, round(self.seconds)))]
        device, _colon, port = end.device.partition(":")
        command += ["-F", "-d", device, "-i", port or "1", "-x", str(end.gid_index), "-p", str(self.port + 1 + number)]
        return command if self.server else [*command, end.peer.address]

    def start(self, kind: str, number: int) -> subprocess.Popen[str]:
        # Both ends and all rails run at the same time, so this cannot wait for one after the other.
        process = subprocess.Popen(
            self.command(kind, number), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], kind: str) -> float:
        try:
            output, _none = process.communicate(timeout=self.seconds + PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise ValueError(f"{process.args!r} did not end") from None
        if process.returncode != 0:
            said = " ".join(output.split())[-300:] or f"rc {process.returncode}"
            raise ValueError(f"ib_write_{kind} failed: {said}")
        if self.server:
            return 0.0
        return parse_latency(output) if kind == "lat" else parse_bandwidth(output)

    def serve(self, kind: str, numbers: t.Sequence[int]) -> t.Callable[[], dict[int, float]]:
        processes = {number: self.start(kind, number) for number in numbers}
        deadline = time.monotonic() + 10
        while not all(listening(self.port + 1 + number) for number in numbers):
            if time.monotonic() >= deadline or any(process.poll() is not None for process in processes.values()):
                break
            time.sleep(0.05)
        return lambda: {number: self.finish(process, kind) for number, process in processes.items()}

    def ask(self, kind: str, numbers: t.Sequence[int]) -> dict[int, float]:
        processes = {number: self.start(kind, number) for number in numbers}
        return _at_once(lambda number: self.finish(processes[number], kind), numbers)

    def close(self) -> None:
        """End what still listens for an end that will not come: the other node gave up."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def listening(port: int, table: str = "/proc/net/tcp") -> bool:
    """Whether somebody on this machine listens on a TCP port."""
    with open(table, encoding="ascii") as stream:
        rows = [line.split() for line in stream.readlines()[1:]]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def choose(wanted: str, own: bool, other: bool, here: str, there: str) -> str:
    """What carries the measurement, from what both ends have."""
    if wanted == "tcp" or (wanted == "auto" and not (own and other)):
        return "tcp"
    for node, has in ((here, own), (there, other)):
        if not has:
            raise ValueError(f"{node} cannot measure RDMA: it has no device on every rail, or no perftest")
    return "rdma"


def serve_pair(
    here: str, client: str, ends: t.Sequence[End], port: int, seconds: float, wanted: str, rdma: bool
) -> None:
    """The half of the node that comes first in the list: it does what the client asks for."""
    with _listen(ends[0].own.address, port) as listener:
        connection, _peer = listener.accept()
    connection.settimeout(PATIENCE_S + 10 * seconds)
    control = Control(connection)
    kit: Tcp | Perftest | None = None
    try:
        hello = control.receive()
        control.send({"node": here, "rdma": rdma})
        if hello["node"] != client:
            raise ValueError(f"{hello['node']} answered where {client} was expected; two rails are swapped")
        transport = choose(wanted, rdma, hello["rdma"], here, client)
        kit = (Perftest if transport == "rdma" else Tcp)(ends, port, seconds, True)
        while True:
            step = control.receive()
            if step["kind"] == "end":
                return
            finish = kit.serve(step["kind"], step["rails"])
            control.send({"ready": True})
            control.receive()
            control.send({"results": {str(number): value for number, value in finish().items()}})
    finally:
        if kit:
            kit.close()
        control.close()


def measure_pair(
    here: str, server: str, ends: t.Sequence[End], port: int, seconds: float, wanted: str, rdma: bool
) -> Measurement:
    """The half of the node that comes second in the list: it asks, and measures."""
    control = Control(_connect(ends[0].own.address, ends[0].peer.address, port))
    kit: Tcp | Perftest | None = None
    try:
        control.send({"node": here, "rdma": rdma})
        hello = control.receive()
        if hello["node"] != server:
            raise ValueError(f"{hello['node']} answered where {server} was expected; two rails are swapped")
        transport = choose(wanted, rdma, hello["rdma"], here, server)
        kit = (Perftest if transport == "rdma" else Tcp)(ends, port, seconds, False)

        def step(kind: str, numbers: list[int]) -> dict[int, float]:
            control.send({"kind": kind, "rails": numbers})
            control.receive()
            seen = kit.ask(kind, numbers)
            control.send({"done": True})
            theirs = {int(number): value for number, value in control.receive()["results"].items()}
            # TCP's bandwidth is what arrived, which only the other end knows.
            return theirs if transport == "tcp" and kind == "bw" else seen

        numbers = list(range(len(ends)))
        single = {end.own.interface: step("bw", [number])[number] for number, end in enumerate(ends)}
        total = sum(step("bw", numbers).values()) if len(ends) > 1 else sum(single.values())
        latency = {end.own.interface: step("lat", [number])[number] for number, end in enumerate(ends)}
        control.send({"kind": "end"})
    finally:
        if kit:
            kit.close()
        control.close()
    return Measurement(here, server, transport, single, total, latency)
