# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One node of a copy that runs around a ring: it takes what it lacks from the node before and gives to the one after.

Private to the collection. A node passes a file on while it still receives it, so each link carries every byte once
and three copies take about as long as one. Several streams, each a file of its own, over all rails. Every byte is
hashed as it arrives; a file gets its name when its hash is the manifest's, and what an interrupted copy left is
continued. The nodes know each other by a key that the controller made for this copy.

Runs by itself on a node, from an archive that holds this file and _manifest.py: `python3 peer.pyz JOB STATUS`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import struct
import sys
import threading
import time
import typing as t
from contextlib import ExitStack

from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import (
    Entry,
    check_name,
    partial_name,
    read_manifest,
    size_text,
    stat_of,
    write_manifest,
)

# Passed on when it is whole: the smaller, the sooner the last node of the ring has something to do.
_CHUNK_BYTES = 1 << 18
_LINE_LIMIT_BYTES = 65_536
# How long a node that is done, or has failed, stays to tell its neighbours.
_FAREWELL_S = 5.0
_RETRY_S = 0.25

# A file of the copy: the number of its folder and its name.
Key = tuple[int, str]


class Broken(Exception):
    """The copy cannot go on here; the sentence says why."""


class Progress:
    """One file on this node, from nothing to whole: its path, and how many of its bytes may be passed on."""

    def __init__(self, path: str, size_bytes: int, sha256: str, whole: bool) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.sha256 = sha256
        self.whole = whole
        self.available_bytes = size_bytes if whole else 0
        # Counts how often it was begun anew: who reads it then has to start again too.
        self.generation = 0
        # A condition for each file: a chunk of one wakes nobody who waits for another.
        self.changed = threading.Condition()

    def arrived(self, bytes_here: int) -> None:
        """So many bytes are here, and not known to be right yet.

        All but the last may be passed on. So the node after this one comes to the end of the file later than this one,
        and when that one has to begin anew, what it gets is right.
        """
        self.advance(min(bytes_here, self.size_bytes - 1))

    def advance(self, available_bytes: int, anew: bool = False) -> None:
        """More of it may be passed on, or nothing any more since it is begun *anew*."""
        with self.changed:
            self.available_bytes = available_bytes
            self.generation += anew
            self.changed.notify_all()


def set_timeout(connection: socket.socket, seconds: float) -> None:
    """Let the kernel watch the time: a Python timeout would make every call return with the little that is there."""
    connection.settimeout(None)
    value = struct.pack("ll", int(seconds), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def read_line(connection: socket.socket) -> dict[str, t.Any]:
    """One line of JSON; an empty mapping when the other side has gone."""
    text = b""
    while not text.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(text) > _LINE_LIMIT_BYTES:
            return {}
        text += byte
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def send_line(connection: socket.socket, value: t.Mapping[str, t.Any]) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


class Peer:
    """This node's part of one copy."""

    def __init__(self, job: t.Mapping[str, t.Any]) -> None:
        self.name: str = job["name"]
        self._key: str = job["key"]
        self._port: int = job["port"]
        self._listen: list[str] = job["listen"]
        self._before: dict[str, t.Any] | None = job["before"]
        self._after: str | None = job["after"]
        self._streams: int = job["streams"]
        self._idle_s: float = job["idle_timeout_s"]
        self._folders: list[str] = [folder["path"] for folder in job["folders"]]
        # Guards what the streams share: the files that wait, the manifests, and why it ended.
        self._lock = threading.Lock()
        self._files: dict[Key, Progress] = {}
        self._waiting: list[Key] = []
        for number, folder in enumerate(job["folders"]):
            needed = set(folder["need"])
            for name, wanted in sorted(folder["files"].items()):
                path = os.path.join(folder["path"], check_name(name, "the job"))
                key = (number, name)
                self._files[key] = Progress(path, wanted["size_bytes"], wanted["sha256"], name not in needed)
                if name in needed:
                    self._waiting.append(key)
        self.needed_files = len(self._waiting)
        self.needed_bytes = sum(self._files[key].size_bytes for key in self._waiting)
        self.done_files = 0
        self.kept_bytes = 0
        self.received_bytes = 0
        self._waiting.reverse()
        self._manifests = {number: read_manifest(path) for number, path in enumerate(self._folders)}
        self._successor_done = self._after is None
        self._listeners: list[socket.socket] = []
        self._broken = ""
        self._active_at = time.monotonic()
        # When the first byte came and the last file got its name, by this node's clock: what a rate is made of.
        self.began_at: float | None = None
        self.ended_at: float | None = None

    # --- what all threads share -------------------------------------------------------------------------------

    def _touch(self) -> None:
        self._active_at = time.monotonic()

    def _break(self, sentence: str) -> None:
        """End the copy on this node; the first reason is the one that counts."""
        with self._lock:
            self._broken = self._broken or sentence
        for progress in self._files.values():
            progress.advance(progress.available_bytes)

    # --- giving -----------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Answer the node after this one, on every address that is up."""
        errors = []
        for address in self._listen:
            try:
                family, kind, number, _name, target = socket.getaddrinfo(address, self._port, type=socket.SOCK_STREAM)[
                    0
                ]
                listener = socket.socket(family, kind, number)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(target)
                listener.listen(64)
            except OSError as error:
                errors.append(f"{address}: {error.strerror or error}")
                continue
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        if not self._listeners:
            raise Broken(
                f"{self.name} cannot listen on port {self._port} ({'; '.join(errors)}); give addresses that are its "
                "own and up, and a port that is free"
            )

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                # The copy has ended.
                return
            set_timeout(connection, self._idle_s)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer one stream until it ends."""
        with connection:
            try:
                while True:
                    request = read_line(connection)
                    if not hmac.compare_digest(str(request.get("key", "")).encode(), self._key.encode()):
                        return
                    self._touch()
                    if "bye" in request:
                        self._take_leave(request["bye"])
                        return
                    if not self._give(connection, request):
                        return
            except OSError:
                # It comes again, or the copy ends because nothing moves any more.
                return

    def _take_leave(self, sentence: object) -> None:
        self._successor_done = True
        if sentence:
            self._break(str(sentence))

    def _give(self, connection: socket.socket, request: t.Mapping[str, t.Any]) -> bool:
        """Send one file from an offset on, as far as it is here and as it arrives."""
        progress = self._files.get((request.get("folder", -1), str(request.get("name"))))
        offset = request.get("offset")
        fits = progress is not None and isinstance(offset, int) and 0 <= offset <= progress.size_bytes
        if self._broken or progress is None or not isinstance(offset, int) or not fits:
            send_line(connection, {"error": self._broken or f"{self.name} has no file {request.get('name')!r}"})
            return False
        send_line(connection, {"ok": True})
        generation = progress.generation
        stream: t.BinaryIO | None = None
        with ExitStack() as opened:
            while offset < progress.size_bytes:
                with progress.changed:
                    while progress.available_bytes <= offset and not self._broken and progress.generation == generation:
                        progress.changed.wait()
                    until = progress.available_bytes
                if self._broken or progress.generation != generation:
                    return False
                if stream is None:
                    try:
                        stream = opened.enter_context(
                            open(progress.path if progress.whole else partial_name(progress.path), "rb")
                        )
                    except FileNotFoundError:
                        # It got its name between the look and the opening: the other side asks again.
                        return False
                sent = os.sendfile(connection.fileno(), stream.fileno(), offset, min(until - offset, 1 << 24))
                if sent == 0:
                    return False
                offset += sent
                self._touch()
        return True

    # --- taking -----------------------------------------------------------------------------------------------

    def _giver(self) -> dict[str, t.Any]:
        """The node before; only a node that has one takes anything."""
        if self._before is None:
            raise Broken(f"{self.name} is to take files, but its job names nobody who gives them.")
        return self._before

    def _connect(self, stream: int) -> socket.socket:
        """A connection to the node before, over the rail of this stream or else over any other."""
        addresses = self._giver()["addresses"]
        reason = "no address"
        while not self._broken:
            for turn in range(len(addresses)):
                address = addresses[(stream + turn) % len(addresses)]
                try:
                    connection = socket.create_connection((address, self._port), timeout=min(self._idle_s, 5))
                except OSError as error:
                    reason = f"{address}: {error.strerror or error}"
                    continue
                set_timeout(connection, self._idle_s)
                return connection
            if time.monotonic() - self._active_at > self._idle_s:
                raise Broken(
                    f"{self._giver()['name']} does not answer {self.name} on port {self._port} ({reason}); see that it "
                    "is up and that no firewall is between them, then run again: the copy is continued"
                )
            time.sleep(_RETRY_S)
        raise Broken(self._broken)

    def _fetch_all(self, stream: int) -> None:
        """One stream: file after file until nothing is left."""
        connection: socket.socket | None = None
        try:
            while True:
                with self._lock:
                    if not self._waiting or self._broken:
                        return
                    key = self._waiting.pop()
                connection = self._fetch(key, stream, connection)
        except Broken as error:
            self._break(str(error))
        except OSError as error:
            self._break(
                f"{self.name} cannot go on: {error.strerror or error} ({error.filename or 'writing the checkpoint'}); "
                "put that right and run again: the copy is continued"
            )
        finally:
            if connection is not None:
                connection.close()

    def _fetch(self, key: Key, stream: int, connection: socket.socket | None) -> socket.socket | None:
        """Take one file, twice if what arrived was not what the manifest says."""
        progress = self._files[key]
        os.makedirs(os.path.dirname(progress.path), exist_ok=True)
        part = partial_name(progress.path)
        for attempt in (1, 2):
            with open(part, "r+b" if os.path.exists(part) else "w+b", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > progress.size_bytes:
                    file.truncate(0)
                digest, offset = self._rehash(progress, file)
                while offset < progress.size_bytes:
                    connection, offset = self._receive(key, stream, connection, file, digest, offset)
                if digest.hexdigest() == progress.sha256:
                    progress.advance(progress.size_bytes)
                    self._complete(key, file, part)
                    return connection
                file.truncate(0)
            progress.advance(0, anew=True)
            if attempt == 2:
                break
        raise Broken(
            f"{progress.path} came to {self.name} twice with another SHA-256 than the manifest has "
            f"({digest.hexdigest()}, not {progress.sha256}): {self._giver()['name']} gives it damaged; "
            "verify that node in full"
        )

    def _rehash(self, progress: Progress, file: t.Any) -> tuple[t.Any, int]:
        """The hash of what an interrupted copy left, and how much that is."""
        digest = hashlib.sha256()
        offset = 0
        while True:
            data = file.read(_CHUNK_BYTES)
            if not data:
                return digest, offset
            digest.update(data)
            offset += len(data)
            self._touch()
            with self._lock:
                self.kept_bytes += len(data)
            progress.arrived(offset)

    def _receive(
        self, key: Key, stream: int, connection: socket.socket | None, file: t.Any, digest: t.Any, offset: int
    ) -> tuple[socket.socket | None, int]:
        """Ask for the rest of a file and take what comes, until it is whole or the connection breaks."""
        progress = self._files[key]
        connection = connection or self._connect(stream)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        try:
            send_line(connection, {"key": self._key, "folder": key[0], "name": key[1], "offset": offset})
            answer = read_line(connection)
            if answer.get("error"):
                raise Broken(str(answer["error"]))
            while answer and offset < progress.size_bytes:
                wanted = min(_CHUNK_BYTES, progress.size_bytes - offset)
                count = connection.recv_into(buffer, wanted, socket.MSG_WAITALL)
                if not count:
                    break
                file.write(buffer[:count])
                digest.update(buffer[:count])
                offset += count
                self._touch()
                progress.arrived(offset)
                with self._lock:
                    self.received_bytes += count
                    self.began_at = self.began_at or time.time()
            if offset == progress.size_bytes:
                return connection, offset
        except (ConnectionError, BlockingIOError):
            pass
        connection.close()
        if self._broken:
            raise Broken(self._broken)
        if time.monotonic() - self._active_at > self._idle_s:
            raise Broken(
                f"{self._giver()['name']} has given {self.name} nothing for {self._idle_s:.0f} s; "
                "see what holds it up, then run again: the copy is continued"
            )
        time.sleep(_RETRY_S)
        return None, offset

    def _complete(self, key: Key, file: t.Any, part: str) -> None:
        """Give a whole file its name, and write it into the manifest."""
        number, name = key
        progress = self._files[key]
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
        os.replace(part, progress.path)
        progress.whole = True
        with self._lock:
            self._manifests[number][name] = Entry(stat_of(progress.path), progress.sha256, time.time())
            write_manifest(self._folders[number], self._manifests[number])
            self.done_files += 1
            self.ended_at = time.time() if self.done_files == self.needed_files else None

    # --- the whole --------------------------------------------------------------------------------------------

    def run(self, report: t.Callable[[dict[str, t.Any]], None]) -> bool:
        """Give and take until all is done; true when it is."""
        threads: list[threading.Thread] = []
        try:
            if self._after is not None:
                self.listen()
            for stream in range(min(self._streams, self.needed_files)):
                thread = threading.Thread(target=self._fetch_all, args=(stream,), daemon=True)
                thread.start()
                threads.append(thread)
        except Broken as error:
            self._break(str(error))
        shown = 0.0
        left = False
        while not self._broken and (any(thread.is_alive() for thread in threads) or not self._successor_done):
            if not left and not any(thread.is_alive() for thread in threads):
                # Not after the last one is served: around a whole ring everybody would wait for everybody.
                self._say_goodbye()
                left = True
            time.sleep(0.05)
            now = time.monotonic()
            if now - shown >= 1:
                report(self.status("running"))
                shown = now
            if now - self._active_at > self._idle_s + 5:
                self._break(self._stalled())
        if not left or self._broken:
            self._say_goodbye()
        report(self.status("failed" if self._broken else "done"))
        if self._broken:
            # Whoever asks meanwhile is told why there will be no more.
            time.sleep(_FAREWELL_S)
        for listener in self._listeners:
            # Closing alone would not wake the thread that waits for a connection.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        return not self._broken

    def _stalled(self) -> str:
        if self.done_files < self.needed_files:
            before = self._before["name"] if self._before else "nobody"
            return f"{before} has given {self.name} nothing for {self._idle_s:.0f} s; run again: the copy is continued"
        return (
            f"{self._after} has fetched nothing from {self.name} for {self._idle_s:.0f} s; see what holds it up, then "
            "run again: the copy is continued"
        )

    def _say_goodbye(self) -> None:
        """Tell the node before that nothing more is wanted, or why."""
        if self._before is None:
            return
        for address in self._before["addresses"]:
            try:
                with socket.create_connection((address, self._port), timeout=2) as connection:
                    send_line(connection, {"key": self._key, "bye": self._broken})
                    return
            except OSError:
                continue

    def status(self, state: str) -> dict[str, t.Any]:
        """What a person and the controller want to know."""
        now = time.time()
        seconds = max((self.ended_at or now) - (self.began_at or now), 0.001)
        source = self._before["name"] if self._before else "nobody"
        have = min(self.received_bytes + self.kept_bytes, self.needed_bytes)
        message = (
            f"{size_text(have)} of {size_text(self.needed_bytes)} here, {self.done_files} of {self.needed_files} "
            f"files, {self.received_bytes / seconds / 1e6:.0f} MB/s from {source}"
        )
        if state == "running" and self.done_files == self.needed_files and self._after:
            message = f"everything is here, {self._after} still fetches"
        return {
            "state": state,
            "message": message,
            "sentence": self._broken,
            "received_bytes": self.received_bytes,
            "kept_bytes": self.kept_bytes,
            "needed_bytes": self.needed_bytes,
            "files": self.done_files,
            "seconds": round(seconds, 2),
            "began_at": self.began_at,
            "ended_at": self.ended_at,
        }


def write_status(path: str, status: t.Mapping[str, t.Any]) -> None:
    partial = f"{path}.{os.getpid()}"
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(status, stream)
    os.replace(partial, path)


def main(job_path: str, status_path: str) -> int:
    """Entry point of the archive."""
    with open(job_path, encoding="utf-8") as stream:
        peer = Peer(json.load(stream))
    return 0 if peer.run(lambda status: write_status(status_path, status)) else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:3]))
