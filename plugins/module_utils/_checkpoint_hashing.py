# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hash a model folder in a process of its own, so that whoever waits for it sees it move inside a file of any size.

Private to the collection. A module's answer comes when it ends, and one shard may take minutes on a slow disk. So the
work goes on beside the module's calls: each one starts it or finds it running, waits a while and tells how far it is.
The manifest keeps what is done; a process that was killed costs the files that it had begun.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import typing as t

# Hidden, so that it is no part of the checkpoint. Locked by the process that hashes, for as long as it lives.
STATE_FILE = ".sparkrig-hashing"

_POLL_S = 0.05
_TELL_S = 0.5
# Nobody has asked for so long: the controller is gone, and what runs on a node next needs its processors.
_FORSAKEN_S = 60.0

# The work: it tells how many bytes of files it has hashed that the manifest does not have yet.
Work = t.Callable[[t.Callable[[int], None]], None]


class Progress(t.NamedTuple):
    """Whether the work has ended, and the bytes of files that are not done."""

    ended: bool
    bytes_under_way: int


def _free(descriptor: int) -> bool:
    """Whether nobody else holds the lock; then this descriptor does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _tell(descriptor: int, **state: t.Any) -> None:
    text = json.dumps(state).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


class _Teller(threading.Thread):
    """Writes how far the work is, and ends the process when nobody wants to know any more."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self.descriptor = descriptor
        self.bytes_under_way = 0
        # Held while the last word is written: nothing is written after it.
        self.last_word = threading.Lock()

    def note(self, bytes_under_way: int) -> None:
        self.bytes_under_way = bytes_under_way

    def run(self) -> None:
        while True:
            with self.last_word:
                _tell(self.descriptor, bytes=self.bytes_under_way)
            # Writing does not touch the time of the last access; only who waits sets it.
            if time.time() - os.fstat(self.descriptor).st_atime > _FORSAKEN_S:
                os._exit(1)
            time.sleep(_TELL_S)


def _work_apart(folder: str, descriptor: int, work: Work) -> None:
    """Do the work in a grandchild with a session of its own; returns in the caller only.

    The caller is a module, which has no other thread: a lock that one held would stay locked in the child for ever.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        # SSH and sudo wait for the end of whoever holds the module's output.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        teller = _Teller(descriptor)
        teller.start()
        sentence = ""
        try:
            work(teller.note)
        except OSError as error:
            sentence = (
                f"{folder} cannot be hashed: {error.strerror} ({error.filename}); see that the disk is well and the "
                "folder can be written, then run again: the files that were done are kept"
            )
        except ValueError as error:
            sentence = str(error)
        teller.last_word.acquire()
        _tell(descriptor, bytes=0, ended=True, sentence=sentence)
    finally:
        os._exit(0)


def hash_apart(folder: str, work: Work, wait_s: float) -> Progress:
    """Start *work* unless it runs already, and wait for its end, but no longer than *wait_s*."""
    path = os.path.join(folder, STATE_FILE)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.utime(path)
        if _free(descriptor):
            _tell(descriptor, bytes=0)
            # The lock belongs to the open file, which the grandchild shares and keeps.
            _work_apart(folder, descriptor, work)
    finally:
        os.close(descriptor)
    until = time.monotonic() + wait_s
    while True:
        with open(path, "r+b") as stream:
            ended = _free(stream.fileno())
            text = stream.read()
        try:
            state = json.loads(text)
        except ValueError:
            # It was being written.
            state = None
        if ended:
            if not state or not state.get("ended"):
                raise ValueError(
                    f"whoever hashed {folder} ended without a word, perhaps it was killed or the memory ran out; run "
                    "again: the files that were done are kept"
                )
            os.unlink(path)
            if state["sentence"]:
                raise ValueError(state["sentence"])
            return Progress(True, 0)
        if state and time.monotonic() >= until:
            seen = os.stat(path)
            os.utime(path, ns=(time.time_ns(), seen.st_mtime_ns))
            return Progress(False, state["bytes"])
        time.sleep(_POLL_S)
