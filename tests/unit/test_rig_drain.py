# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.modules import rig_drain

Run = t.Callable[..., dict[str, t.Any]]


class Node:
    """A node with nft, whose engine answers its requests one by one."""

    def __init__(self) -> None:
        self.closed = False
        self.left: list[int | None] = [0]
        self.refuses = ""

    def run_command(self, words: list[str], data: str = "") -> tuple[int, str, str]:
        if words[1] == "list":
            return (0 if self.closed else 1), "", ""
        if self.refuses:
            return 1, "", self.refuses
        assert words[1] == "delete" or "tcp dport 18089 reject with tcp reset" in data
        self.closed = words[1] != "delete"
        return 0, "", ""

    def under_way(self, url: str) -> int | None:
        assert url == "http://10.98.0.11:18089"
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    one = Node()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda self, words, data="": one.run_command(words, data))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda self, name, required=False: f"/usr/sbin/{name}")
    monkeypatch.setattr(rig_drain, "under_way", one.under_way)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return one


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    settings = tmp_path / "watchdog.json"
    settings.write_text('{"url": "http://10.98.0.11:18089"}', encoding="utf-8")

    def call(check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        arguments = {"settings": str(settings), "_ansible_check_mode": check, **options}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            rig_drain.main()
        return t.cast("dict[str, t.Any]", json.loads(capsys.readouterr().out))

    return call


def test_closed_waited_for_and_opened_again(node: Node, run: Run) -> None:
    node.left = [2, 2, 1, 0]
    predicted = run(check=True)
    assert (predicted["changed"], node.closed) == (True, False)
    node.left = [2, 2, 1, 0]
    drained = run()
    assert (drained["changed"], drained["left"], node.closed) == (True, 0, True)
    assert drained["actions"] == [
        "The API takes no new requests from other machines.",
        "After 0 s every request is answered.",
    ]
    assert run()["changed"] is False
    predicted = run(check=True, state="open")
    assert (predicted["changed"], node.closed) == (True, True)
    opened = run(state="open")
    assert (opened["changed"], opened["actions"], node.closed) == (True, ["The API takes new requests again."], False)
    assert run(state="open")["actions"] == ["The API takes new requests already."]


def test_who_is_not_answered_in_time_is_counted(node: Node, run: Run) -> None:
    node.left = [3]
    result = run(timeout_s=0)
    assert (result["left"], result["actions"][-1]) == (
        3,
        "After 0 s 3 request(s) are still under way and will be cut off.",
    )


def test_an_engine_that_does_not_answer_has_nothing_to_drain(node: Node, run: Run) -> None:
    node.left = [None]
    assert (run()["changed"], node.closed) == (False, False)


def test_what_nft_refuses_is_told(node: Node, run: Run) -> None:
    node.refuses = "Operation not permitted\n"
    assert run()["msg"] == "The API cannot be closed to new requests: Operation not permitted."
    node.closed = True
    assert run(state="open")["msg"] == "The API cannot be opened to new requests: Operation not permitted."
