# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lifeline, over real sockets and a systemctl that is not."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _lifeline
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_user import hardening


def until(found: list[str]) -> list[str]:
    """*found*, once there is something."""
    deadline = time.monotonic() + 5
    while not found and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_a_node_that_goes_away_is_told() -> None:
    lost: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=_lifeline.hold, args=(listener, lost.append), daemon=True).start()
    first, second = _lifeline.connect("127.0.0.1", port), _lifeline.connect("127.0.0.1", port)
    assert first.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert lost == []
    first.close()
    assert until(lost) == ["127.0.0.1"]
    second.close()


def test_a_node_restarts_when_its_head_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(_lifeline, "restart", calls.append)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=_lifeline.node, args=("127.0.0.1", port, "x.service"), daemon=True)
        thread.start()
        connection, _peer = listener.accept()
        assert calls == []
        connection.close()
        thread.join(5)
    assert calls == ["x.service"]


@pytest.mark.parametrize(
    ("active", "jobs", "up"),
    [
        ("active", "", True),
        ("activating", "", False),
        ("active", "12 e.service stop running\n", False),
        ("active", "12 other.service start waiting\n", True),
    ],
)
def test_the_head_acts_only_while_the_engine_is_up(
    monkeypatch: pytest.MonkeyPatch, active: str, jobs: str, up: bool
) -> None:
    monkeypatch.setattr(_lifeline, "systemctl", lambda *words: active if words[0] == "is-active" else jobs)
    assert _lifeline.is_up("e.service") is up


def test_wrong_words_are_answered_with_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert _lifeline.main(["head", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("usage: lifeline head ADDRESS:PORT UNIT ENGINE")


def test_the_cage_of_a_process() -> None:
    lines = hardening("sparkrig").splitlines()
    assert lines[:2] == ["User=sparkrig", "Group=sparkrig"]
    assert "CapabilityBoundingSet=CAP_IPC_LOCK" in lines
    assert "ProtectSystem=strict" in lines
    assert not hardening("").startswith("User=")
    with pytest.raises(ValueError, match="is no name of a user"):
        hardening("a b")
