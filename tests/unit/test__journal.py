# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The undo journal: whole, of this node, unedited, or refused."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _journal

CONTENT = {"units": {"cups.service": {"active": "active"}}}


def test_a_journal_comes_back_as_it_was() -> None:
    text = _journal.encode("unit_prune", "m1", CONTENT)
    assert _journal.decode(text, "unit_prune", "m1", "/j") == CONTENT


def edited(change: t.Callable[[dict[str, t.Any]], None]) -> str:
    record = json.loads(_journal.encode("unit_prune", "m1", CONTENT))
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "^the journal /j is not JSON: nothing was changed"),
        ("[]", "^the journal /j has no content"),
        (edited(lambda r: r.update(machine_id="m2")), "^the journal /j was written on machine 'm2', this is 'm1'"),
        (
            edited(lambda r: r.update(kind="fabric")),
            "^the journal /j is of kind 'fabric' version 1, needed is 'unit_prune'",
        ),
        (edited(lambda r: r["content"].update(units={})), "^the journal /j was edited, its digest does not fit"),
        (edited(lambda r: r.pop("sha256")), "^the journal /j was edited, its digest does not fit"),
    ],
)
def test_a_journal_that_is_not_ours_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _journal.decode(text, "unit_prune", "m1", "/j")


def test_store_load_and_remove(tmp_path: Path) -> None:
    path = tmp_path / "sparkrig" / "journal" / "x.json"
    assert _journal.load(str(path), "k") is None
    _journal.store(str(path), "k", CONTENT)
    assert path.stat().st_mode & 0o777 == 0o600
    assert _journal.load(str(path), "k") == CONTENT
    _journal.remove(str(path))
    _journal.remove(str(path))
    assert list(tmp_path.iterdir()) == []


def test_removing_keeps_folders_that_hold_more(tmp_path: Path) -> None:
    path = tmp_path / "sparkrig" / "journal" / "x.json"
    _journal.store(str(path), "k", CONTENT)
    (tmp_path / "sparkrig" / "plan.json").write_text("{}")
    _journal.remove(str(path))
    assert [entry.name for entry in (tmp_path / "sparkrig").iterdir()] == ["plan.json"]


def test_a_file_is_replaced_whole_and_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    _journal.write_file(str(path), "new", 0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_machine_without_id_has_an_empty_one(tmp_path: Path) -> None:
    assert _journal.machine_id(str(tmp_path / "none")) == ""
