# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One node hands its tree on to others, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _runtime_relay
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import Layout, TreeError
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import (
    check_tree,
    install,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_relay import check_token, receive, serve
from ansible_collections.sparkrig.serving.plugins.modules import runtime_relay, runtime_tree
from tests.fixtures.runtimes import Made, make_archive

TOKEN = "a1" * 16


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_archive(tmp_path)


@pytest.fixture
def sender(made: Made, tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "sender", tmp_path / "sender.json")
    install(layout, made.path, made.digest, made.tree_sha256)
    return layout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A relay in a thread, and what it returns."""

    def __init__(self, tree: Path, receivers: int, timeout_s: float = 20.0) -> None:
        self.port = free_port()
        self.sent: int | None = None
        arguments = (tree, "127.0.0.1", self.port, TOKEN, receivers, timeout_s)
        self.thread = threading.Thread(target=lambda: setattr(self, "sent", serve(*arguments)))
        self.thread.start()

    def end(self) -> int | None:
        self.thread.join(30)
        return self.sent


def test_several_nodes_take_the_same_tree(made: Made, sender: Layout, tmp_path: Path) -> None:
    relay = Served(sender.tree(made.digest), 3)
    for number in range(3):
        layout = Layout(tmp_path / f"node{number}", tmp_path / f"{number}.json")
        install(layout, lambda: receive("127.0.0.1", relay.port, TOKEN, 5.0), made.digest, made.tree_sha256)
        assert check_tree(layout.tree(made.digest), made.tree_sha256, full=True) is None
    assert relay.end() == 3


def test_the_sender_ends_with_the_last_receiver(
    made: Made, sender: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_runtime_relay, "_LOOK_S", 3600.0)
    relay = Served(sender.tree(made.digest), 1, timeout_s=7200.0)
    layout = Layout(tmp_path / "node", tmp_path / "node.json")
    install(layout, lambda: receive("127.0.0.1", relay.port, TOKEN, 5.0), made.digest, made.tree_sha256)
    assert relay.end() == 1


def test_who_does_not_know_the_token_gets_nothing(made: Made, sender: Layout, tmp_path: Path) -> None:
    relay = Served(sender.tree(made.digest), 1)
    layout = Layout(tmp_path / "node", tmp_path / "node.json")
    with pytest.raises(TreeError, match="what the other node sends is damaged: it ends too early"):
        install(layout, lambda: receive("127.0.0.1", relay.port, "b" * 32, 5.0), made.digest, made.tree_sha256)
    assert list(layout.trees.iterdir()) == []
    install(layout, lambda: receive("127.0.0.1", relay.port, TOKEN, 5.0), made.digest, made.tree_sha256)
    assert relay.end() == 1


def test_another_tree_than_the_controller_named_is_refused(made: Made, sender: Layout, tmp_path: Path) -> None:
    relay = Served(sender.tree(made.digest), 1, timeout_s=3.0)
    layout = Layout(tmp_path / "node", tmp_path / "node.json")
    with pytest.raises(TreeError, match=r"holds the runtime 1+ with the tree .*, expected 1+ with 0+"):
        install(layout, lambda: receive("127.0.0.1", relay.port, TOKEN, 5.0), made.digest, "0" * 64)
    assert list(layout.trees.iterdir()) == []
    relay.end()


def test_a_node_that_dies_while_it_sends(made: Made, tmp_path: Path) -> None:
    class Broken:
        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def read(self, _size: int) -> bytes:
            raise ConnectionResetError(104, "Connection reset by peer")

    layout = Layout(tmp_path / "node", tmp_path / "node.json")
    stream: t.Any = Broken()
    with pytest.raises(TreeError, match=r"did not come whole .*Connection reset by peer.*runtime_spread=controller"):
        install(layout, lambda: stream, made.digest, made.tree_sha256)
    assert list(layout.trees.iterdir()) == []


def test_nobody_serves(made: Made, tmp_path: Path) -> None:
    with pytest.raises(TreeError, match=r"does not answer at 127\.0\.0\.1:\d+ .*runtime_spread=controller"):
        receive("127.0.0.1", free_port(), TOKEN, 0.0)


def test_a_port_that_is_taken(made: Made, sender: Layout) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(TreeError, match=r"\(Address already in use\): set runtime_relay_port"):
            serve(sender.tree(made.digest), "127.0.0.1", port, TOKEN, 1, 1.0)


def test_nobody_comes(made: Made, sender: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime_relay, "_IDLE_S", 0.5)
    assert serve(sender.tree(made.digest), "127.0.0.1", free_port(), TOKEN, 1, 600.0) == 0


@pytest.mark.parametrize("token", ["short", "a" * 65, "a" * 20 + "\n"])
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(ValueError, match=f"has {len(token)} characters, expected 16 to 64"):
        check_token(token)


Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(module: t.Any, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        with patch_module_args({"_ansible_check_mode": check, **options}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
        return result

    return call


def test_the_modules_of_both_sides(run: Run, made: Made, sender: Layout, tmp_path: Path) -> None:
    relay = Served(sender.tree(made.digest), 1)
    options = {
        **made.options(),
        "relay": {"address": "127.0.0.1", "port": relay.port, "token": TOKEN},
        "root": str(tmp_path / "opt"),
        "record": str(tmp_path / "record.json"),
    }
    planned = run(runtime_tree, check=True, **options)
    assert f"would unpack the runtime {made.digest} from 127.0.0.1" in planned["actions"]
    result = run(runtime_tree, **options)
    assert (result["changed"], result["missing"]) == (True, False)
    assert result["runtime"]["tree_sha256"] == made.tree_sha256
    assert relay.end() == 1


def test_a_node_that_has_the_tree_by_now_is_not_waited_for(
    run: Run, made: Made, sender: Layout, tmp_path: Path
) -> None:
    receiver = Layout(tmp_path / "opt", tmp_path / "record.json")
    install(receiver, made.path, made.digest, made.tree_sha256)
    relay = Served(sender.tree(made.digest), 1)
    began = time.monotonic()
    options = {
        **made.options(),
        "relay": {"address": "127.0.0.1", "port": relay.port, "token": TOKEN},
        "root": str(receiver.root),
        "record": str(receiver.record),
    }
    assert run(runtime_tree, **options)["missing"] is False
    assert relay.end() == 1
    assert time.monotonic() - began < 10


def test_a_sender_that_has_gone_does_not_matter_to_who_has_the_tree(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_tree, "_DECLINE_WAIT_S", 0.0)
    receiver = Layout(tmp_path / "opt", tmp_path / "record.json")
    install(receiver, made.path, made.digest, made.tree_sha256)
    options = {
        **made.options(),
        "relay": {"address": "127.0.0.1", "port": free_port(), "token": TOKEN},
        "root": str(receiver.root),
        "record": str(receiver.record),
    }
    assert run(runtime_tree, **options)["missing"] is False


def test_the_relay_says_who_did_not_come(run: Run, made: Made, sender: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "digest": made.digest,
        "address": "127.0.0.1",
        "port": free_port(),
        "token": TOKEN,
        "receivers": 2,
        "timeout_s": 1,
        "root": str(sender.root),
    }
    assert run(runtime_relay, check=True, **options)["actions"] == [
        f"would hand the runtime {made.digest} on to 2 nodes"
    ]
    result = run(runtime_relay, **options)
    assert result["msg"].startswith(f"Only 0 of 2 nodes took the runtime {made.digest}")
    result = run(runtime_relay, **{**options, "digest": "2" * 16})
    assert "has no manifest that can be read: there is nothing to send" in result["msg"]
