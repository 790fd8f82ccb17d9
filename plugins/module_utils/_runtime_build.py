# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a runtime: wheels from an index or a folder, the patched vLLM, one tree, its manifest, one archive.

The wheels are laid out by this file and not by pip: the target may be another machine than the build host, what a
node does not need is never written, and the same wheels give the same tree.
"""

from __future__ import annotations

import base64
import configparser
import csv
import fcntl
import fnmatch
import hashlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Description,
    LockEntry,
    Manifest,
    ManifestEntry,
    SlimRule,
    Source,
    Target,
    digest_of,
    manifest_look,
    normalized,
    parse_lock,
    platform_tags,
    tree_sha256,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_cache import (
    LOCK_NAME,
    Archive,
    archive_paths,
    find_archive,
    write_info,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_elf import strip_elf
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import file_sha256
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_pack import FILE_MODE, pack
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_source import (
    Built,
    Limits,
    build_key,
    build_wheel,
    find_built,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import (
    Patch,
    PatchedWheel,
    local_version,
    parse_wheel_name,
    patch_wheel,
)

__all__ = [
    "BuildError",
    "Request",
    "build",
    "built_wheels",
    "compatible",
    "entry_point_script",
    "export_wheelhouse",
    "member_target",
]

VERSION_FILE = "vllm/_version.py"
_PROGRAM_MODE = 0o555
_CHUNK_BYTES = 1 << 20
# How many archives stay in the cache.
_KEPT_ARCHIVES = 3
_SCRIPT_GROUPS = ("console_scripts", "gui_scripts")
_ENTRY_POINT = re.compile(r"^(?P<module>[\w.]+)\s*:\s*(?P<attribute>[\w.]+)\s*(?:\[.*\])?$")
_PYTHON_SHEBANG = re.compile(rb"^#!\s*python[^\n]*\n")
# Finds the tree's own Python from where the script lies, so that the tree works at any path.
_SHELL_SHEBANG = b'#!/bin/sh\n\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")/python3" "$0" "$@"\n\' \'\'\'\n'


class BuildError(ValueError):
    """The runtime cannot be built; the text says what, where and what to do."""


@dataclass(frozen=True)
class Request:
    """Everything that decides what is built, and how to get there."""

    description: Description
    target: Target
    lock: str
    patches: tuple[Patch, ...]
    # The interpreter whose pip fetches wheels.
    pip_python: str
    # An interpreter of the target's minor version that byte-compiles, or None: then the nodes compile as they import.
    compile_python: str | None
    # A folder with everything (wheels, built/): then nothing is fetched and nothing is compiled.
    wheelhouse: Path | None = None
    # What a build from source may take, and the variables of the user that it may see.
    limits: Limits | None = None
    inherited: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest_of(self.description, self.target, self.lock, {patch.name: patch.text for patch in self.patches})


@dataclass(frozen=True)
class _Installed:
    entries: dict[str, ManifestEntry]
    unused_slim: tuple[str, ...]


@contextmanager
def _only_one(cache: Path, digest: str) -> Iterator[None]:
    """Two runs that want the same runtime build it once: the second waits and finds it."""
    with (cache / f".{digest}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


# --- wheels -----------------------------------------------------------------------------------------------------


def compatible(file_name: str, target: Target) -> bool:
    """Whether a wheel of this name can be installed on ``target``."""
    wheel = parse_wheel_name(file_name)
    minor = int(target.python.split(".")[1])
    platforms = {"any", *platform_tags(target)}
    if not platforms & set(wheel.platform.split(".")):
        return False
    abis = set(wheel.abi.split("."))
    for tag in wheel.python.split("."):
        match = re.match(r"^(cp|py)3(\d*)$", tag)
        if match is None:
            continue
        built_for = int(match[2] or "0")
        if match[1] == "py":
            fits = built_for <= minor and "none" in abis
        elif built_for == minor:
            fits = bool(abis & {f"cp3{minor}", "abi3", "none"})
        else:
            fits = built_for < minor and "abi3" in abis
        if fits:
            return True
    return False


def _choose(folder: Path, entries: Iterable[LockEntry], target: Target) -> dict[str, Path]:
    """The wheel for each entry that ``folder`` has: right version, right platform, right hash."""
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name = parse_wheel_name(path.name)
        except ValueError:
            continue
        by_name.setdefault(normalized(name.name), []).append((name.version.lower(), path))
    found: dict[str, Path] = {}
    for entry in entries:
        for version, path in by_name.get(entry.name, []):
            if version != entry.version.lower() or not compatible(path.name, target):
                continue
            if entry.hashes and file_sha256(path) not in entry.hashes:
                continue
            found[entry.name] = path
    return found


def _pip_download(request: Request, entries: Sequence[LockEntry], folder: Path, urls: Sequence[str]) -> str | None:
    """Fetch ``entries`` into ``folder``; None, or pip's own words on why not."""
    target = request.target
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{entry.name}=={entry.version}\n" for entry in entries))
    command = [request.pip_python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--python-version", target.python]
    command += ["--implementation", "cp", "--abi", f"cp{target.python.replace('.', '')}", "--abi", "abi3"]
    command += ["--abi", "none"]
    for tag in platform_tags(target):
        command += ["--platform", tag]
    for url in urls:
        command += ["--extra-index-url", url]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    requirements.unlink(missing_ok=True)
    if done.returncode == 0:
        return None
    errors = [line.split("ERROR:", 1)[1].strip() for line in done.stderr.splitlines() if "ERROR:" in line]
    words = [line for line in errors if "Ignored the following" not in line] or done.stderr.strip().splitlines()
    shortened = [re.sub(r"\(from versions: .*\)", "", line) for line in words]
    return " ".join(shortened[-2:]) if shortened else f"pip ended with {done.returncode}"


def _fetch_group(request: Request, entries: Sequence[LockEntry], folder: Path) -> str | None:
    """Fetch one group: as the user's pip is configured, then with the fallback indexes for what only they have."""
    if not entries:
        return None
    folder.mkdir()
    problem = _pip_download(request, entries, folder, ())
    if problem is not None and request.description.fallback_index_urls:
        problem = _pip_download(request, entries, folder, request.description.fallback_index_urls)
    return problem


def _fetch(request: Request, entries: Sequence[LockEntry], wheels: Path) -> None:
    # A local version (torch 2.13.0+cpu) is never on PyPI; apart, it does not stop the rest and loads beside it.
    special = [entry for entry in entries if "+" in entry.version]
    usual = [entry for entry in entries if "+" not in entry.version]
    with tempfile.TemporaryDirectory(prefix=f".fetch-{request.digest}-", dir=wheels) as name:
        folders = [Path(name, "special"), Path(name, "usual")]
        with ThreadPoolExecutor(max_workers=2) as pool:
            problems = list(pool.map(lambda pair: _fetch_group(request, *pair), zip((special, usual), folders)))
        for group, folder, problem in zip((special, usual), folders, problems):
            if problem is not None:
                raise BuildError(f"pip cannot fetch the {len(group)} wheels of the lock that are missing: {problem}")
            for path in folder.glob("*.whl") if folder.is_dir() else ():
                entry = next(
                    (item for item in group if item.name == normalized(parse_wheel_name(path.name).name)), None
                )
                seen = file_sha256(path)
                if entry is not None and entry.hashes and seen not in entry.hashes:
                    raise BuildError(
                        f"the wheel {path.name} that pip fetched has the SHA-256 {seen}, the lock allows"
                        f" {len(entry.hashes)} others for {entry.name} {entry.version}: the index serves another file"
                    )
                path.replace(wheels / path.name)


def _lacks(folder: Path, entries: Sequence[LockEntry], found: Mapping[str, Path]) -> BuildError:
    missing = [entry for entry in entries if entry.name not in found]
    names = ", ".join(f"{entry.name} {entry.version}" for entry in missing[:5])
    return BuildError(
        f"{folder} lacks {len(missing)} of {len(entries)} wheels of the lock with the right version, platform and"
        f" SHA-256: {names}{' and more' if len(missing) > 5 else ''}"
    )


def _wheels(request: Request, cache: Path) -> dict[str, Path]:
    """One wheel for each entry of the lock, fetched when it is not there yet."""
    entries = parse_lock(request.lock)
    source = request.description.source
    wanted = {entry.name: entry for entry in entries}
    own = wanted.get(normalized(source.name))
    if source.kind != "git" and (own is None or own.version != source.version):
        has = f"version {own.version}" if own is not None else "none"
        raise BuildError(
            f"the lock {request.description.lock} has {has} of {source.name}, the runtime wants {source.version}:"
            " compile the lock again or correct runtime.source"
        )
    twice = [item.name for item in request.description.git_sources if normalized(item.name) in wanted]
    if twice:
        raise BuildError(
            f"the lock {request.description.lock} has {', '.join(twice)}, which is built from git: take it out"
        )
    directory = Path(source.directory).expanduser() if source.directory is not None else request.wheelhouse
    if directory is not None:
        if not directory.is_dir():
            raise BuildError(f"the folder of wheels {directory} is not a folder on the build host")
        found = _choose(directory, entries, request.target)
        if len(found) < len(entries):
            raise _lacks(directory, entries, found)
        return found
    folder = cache / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    found = _choose(folder, entries, request.target)
    missing = [entry for entry in entries if entry.name not in found]
    if missing:
        _fetch(request, missing, folder)
        found.update(_choose(folder, missing, request.target))
        lost = [entry.name for entry in missing if entry.name not in found]
        if lost:
            raise BuildError(f"pip fetched no wheel for {', '.join(lost)} that runs on {request.target}")
    return found


def built_wheels(request: Request, cache: Path) -> dict[str, Built]:
    """The wheel of every git source, built here unless it was built before or carried here."""
    description, target = request.description, request.target
    result: dict[str, Built] = {}
    house = request.wheelhouse
    folders = ([house / "built"] if house is not None else []) + [cache / "built"]
    options = ["--find-links", str(cache / "wheels")] if (cache / "wheels").is_dir() else []
    for url in description.fallback_index_urls:
        options += ["--extra-index-url", url]
    for source in description.git_sources:
        main = source is description.source
        patches = request.patches if main else ()
        prefix = description.local_version if main else ""
        version = local_version(source.version, prefix, patches)
        key = build_key(source, description.build, target, version, patches)
        built = find_built(folders, key)
        if built is None and house is not None:
            raise BuildError(
                f"the wheelhouse {house} has no {source.name} {version} built from the commit {source.commit}"
                f" (built/{key}): export it again on the host that built it"
            )
        if built is None:
            if request.limits is None:
                raise BuildError(f"{source.name} would have to be built, and no limits for a build were given")
            built = _build_alone(request, source, patches, prefix, key, options, request.limits, cache / "built")
        result[normalized(source.name)] = built
    return result


def _build_alone(
    request: Request,
    source: Source,
    patches: tuple[Patch, ...],
    prefix: str,
    key: str,
    options: Sequence[str],
    limits: Limits,
    folder: Path,
) -> Built:
    """Build one source, unless another run did so while this one waited."""
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder, key):
        there = find_built([folder], key)
        if there is not None:
            return there
        # The lock is held: nobody works in what a killed build left.
        for stale in folder.glob(f".build-{key}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        return build_wheel(
            source,
            request.description.build,
            request.target,
            patches,
            prefix,
            request.description.patches_moved,
            request.compile_python,
            request.pip_python,
            options,
            limits,
            folder,
            request.inherited,
        )


def export_wheelhouse(request: Request, cache: Path, folder: Path) -> tuple[str, ...]:
    """Put all that ``request`` is built from into ``folder``; returns what was not there yet."""
    wheels = _wheels(request, cache)
    built = built_wheels(request, cache)
    folder.mkdir(parents=True, exist_ok=True)
    copies = [(path, folder / path.name) for path in wheels.values()]
    for item in built.values():
        made = Path(item.path).parent
        copies += [(path, folder / "built" / made.name / path.name) for path in sorted(made.iterdir())]
    added = []
    for path, target in copies:
        if target.is_file() and file_sha256(target) == file_sha256(path):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(path, partial)
        partial.replace(target)
        added.append(target.name)
    lock = folder / LOCK_NAME
    if not lock.is_file() or lock.read_text() != request.lock:
        lock.write_text(request.lock)
        added.append(lock.name)
    return tuple(added)


# --- the tree ---------------------------------------------------------------------------------------------------


def entry_point_script(value: str) -> bytes:
    """The program that a console entry point (``module:attribute``) stands for."""
    match = _ENTRY_POINT.match(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not an entry point (MODULE:ATTRIBUTE)")
    module, attribute = match["module"], match["attribute"]
    first = attribute.split(".")[0]
    body = f"import sys\n\nfrom {module} import {first}\n\nif __name__ == '__main__':\n    sys.exit({attribute}())\n"
    return _SHELL_SHEBANG + body.encode()


def member_target(member: str, data_folder: str, packages: str) -> str | None:
    """Where a wheel's member goes in the tree, relative to its root; None for what is made anew or is not installed."""
    if member.endswith("/"):
        return None
    parts = member.split("/")
    if ".." in parts or "" in parts or "." in parts:
        raise ValueError(f"{member!r} is not a path inside a wheel")
    if re.match(r"^[^/]+\.dist-info/RECORD(\.jws|\.p7s)?$", member):
        return None
    if parts[0] != data_folder:
        return f"{packages}/{member}"
    if len(parts) < 3:
        raise ValueError(f"{member!r} is neither purelib, platlib, scripts, headers nor data")
    kind, rest = parts[1], "/".join(parts[2:])
    if kind in ("purelib", "platlib"):
        return f"{packages}/{rest}"
    if kind == "scripts":
        return f"bin/{rest}"
    if kind == "data":
        return rest
    if kind == "headers":
        return None
    raise ValueError(f"{member!r} is neither purelib, platlib, scripts, headers nor data")


class _Slim:
    """Which paths are dropped and which are stripped; remembers which patterns were of use."""

    def __init__(self, rules: Sequence[SlimRule], packages: str) -> None:
        self._rules = [
            (rule.action, path, re.compile(fnmatch.translate(path[1:] if path[0] == "/" else f"{packages}/{path}")))
            for rule in rules
            for path in rule.paths
        ]
        self._used: set[str] = set()

    def actions(self, path: str) -> set[str]:
        result = set()
        for action, text, pattern in self._rules:
            if action not in result and pattern.match(path):
                result.add(action)
                self._used.add(text)
        return result

    @property
    def unused(self) -> tuple[str, ...]:
        return tuple(text for _action, text, _pattern in self._rules if text not in self._used)


def _write(root: Path, path: str, data: bytes, mode: int) -> ManifestEntry:
    target = root / path
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
    return ManifestEntry(path, mode, len(data), hashlib.sha256(data).hexdigest(), None)


def _record(entries: Iterable[ManifestEntry], packages: str, own: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for entry in sorted(entries, key=lambda item: item.path):
        digest = base64.urlsafe_b64encode(bytes.fromhex(entry.sha256 or "")).rstrip(b"=").decode()
        writer.writerow([os.path.relpath(entry.path, packages), f"sha256={digest}", entry.size])
    writer.writerow([own, "", ""])
    return text.getvalue().encode()


@dataclass(frozen=True)
class _Member:
    member: str
    target: str
    strip: bool
    program: bool
    script: bool


@dataclass(frozen=True)
class _Plan:
    wheel: Path
    dist_info: str
    members: tuple[_Member, ...]
    scripts: dict[str, bytes]


def _plan(wheel: Path, packages: str, slim: _Slim) -> _Plan:
    with zipfile.ZipFile(wheel) as archive:
        infos = archive.infolist()
        name = parse_wheel_name(wheel.name)
        own = [item.filename.split("/")[0] for item in infos if re.match(r"^[^/]+\.dist-info/METADATA$", item.filename)]
        if len(own) != 1:
            raise BuildError(f"the wheel {wheel.name} has {len(own)} .dist-info folders with METADATA, expected one")
        members = []
        for info in infos:
            target = member_target(info.filename, f"{name.name}-{name.version}.data", packages)
            if target is None:
                continue
            actions = slim.actions(target)
            if "drop" not in actions:
                script = target.startswith("bin/")
                program = script or bool(info.external_attr >> 16 & 0o111)
                members.append(_Member(info.filename, target, "strip" in actions, program, script))
        scripts: dict[str, bytes] = {}
        points = f"{own[0]}/entry_points.txt"
        if any(info.filename == points for info in infos):
            parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
            parser.optionxform = str  # type: ignore[assignment,method-assign]
            parser.read_string(archive.read(points).decode())
            for group in _SCRIPT_GROUPS:
                for script_name, value in parser.items(group) if parser.has_section(group) else ():
                    if "drop" not in slim.actions(f"bin/{script_name}"):
                        scripts[f"bin/{script_name}"] = entry_point_script(value)
    return _Plan(wheel, own[0], tuple(members), scripts)


def _lay_out(plan: _Plan, owned: Mapping[str, Path], root: Path, packages: str) -> list[ManifestEntry]:
    """Write what one wheel owns; returns the entries, its new RECORD among them."""
    entries: list[ManifestEntry] = []
    with zipfile.ZipFile(plan.wheel) as archive:
        for item in plan.members:
            if owned[item.target] != plan.wheel:
                continue
            try:
                data = archive.read(item.member)
            except (zipfile.BadZipFile, zlib.error) as exc:
                raise BuildError(f"the wheel {plan.wheel.name} is damaged at {item.member}: {exc}") from exc
            if item.script:
                data = _PYTHON_SHEBANG.sub(lambda _match: _SHELL_SHEBANG, data, count=1)
            if item.strip:
                data = strip_elf(data) or data
            entries.append(_write(root, item.target, data, _PROGRAM_MODE if item.program else FILE_MODE))
    for path, data in sorted(plan.scripts.items()):
        if owned[path] == plan.wheel:
            entries.append(_write(root, path, data, _PROGRAM_MODE))
    info = f"{packages}/{plan.dist_info}"
    entries.append(_write(root, f"{info}/INSTALLER", b"sparkrig.serving\n", FILE_MODE))
    own = f"{plan.dist_info}/RECORD"
    entries.append(_write(root, f"{info}/RECORD", _record(entries, packages, own), FILE_MODE))
    return entries


def _install(request: Request, wheels: Iterable[Path], root: Path) -> _Installed:
    """Lay all wheels out as a virtual environment below ``root``."""
    python = request.target.python
    packages = f"lib/python{python}/site-packages"
    slim = _Slim(request.description.slim, packages)
    plans = [_plan(wheel, packages, slim) for wheel in sorted(wheels, key=lambda path: path.name.lower())]
    # Where two wheels bring one path, the later name wins, as it does when pip installs them in that order.
    owned: dict[str, Path] = {}
    for plan in plans:
        for item in plan.members:
            owned[item.target] = plan.wheel
        for path in plan.scripts:
            owned[path] = plan.wheel
    for folder in sorted({os.path.dirname(path) for path in owned}):
        (root / folder).mkdir(parents=True, exist_ok=True)
    entries: dict[str, ManifestEntry] = {}
    # The largest wheels first, or the last one would keep one core waiting for the other.
    largest_first = sorted(plans, key=lambda plan: -plan.wheel.stat().st_size)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for result in pool.map(lambda plan: _lay_out(plan, owned, root, packages), largest_first):
            entries.update((entry.path, entry) for entry in result)
    config = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n"
    entries["pyvenv.cfg"] = _write(root, "pyvenv.cfg", config.encode(), FILE_MODE)
    (root / "bin").mkdir(exist_ok=True)
    links = {
        f"bin/python{python}": f"/usr/bin/python{python}",
        "bin/python3": f"python{python}",
        "bin/python": f"python{python}",
        "lib64": "lib",
    }
    for path, to in links.items():
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(to)
        entries[path] = ManifestEntry(path, 0, 0, None, to)
    return _Installed(entries, slim.unused)


def _compile(python: str, root: Path, packages: str) -> None:
    """Byte-compile all modules. The pycs are never checked against their sources: the tree never changes."""
    command = [python, "-I", "-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(root / packages), "-p", "", str(root / packages)]
    # Its exit code tells of files that are templates or for other Pythons; they stay as they are.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise BuildError(f"byte-compiling with {python} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def _compiled_entries(root: Path) -> list[ManifestEntry]:
    entries = []
    for folder, _folders, files in os.walk(root):
        if os.path.basename(folder) == "__pycache__":
            for name in files:
                data = Path(folder, name).read_bytes()
                path = os.path.relpath(os.path.join(folder, name), root)
                entries.append(ManifestEntry(path, FILE_MODE, len(data), hashlib.sha256(data).hexdigest(), None))
    return entries


# --- the archive ------------------------------------------------------------------------------------------------


def _versions(root: Path, packages: str, names: Iterable[str]) -> dict[str, str]:
    wanted = set(names)
    versions = {}
    for path in (root / packages).glob("*.dist-info/METADATA"):
        head = path.read_text(errors="replace").split("\n\n", 1)[0]
        fields = dict(line.split(": ", 1) for line in head.splitlines() if re.match(r"^(Name|Version): ", line))
        if normalized(fields.get("Name", "")) in wanted:
            versions[normalized(fields["Name"])] = fields.get("Version", "")
    return versions


def _sweep(cache: Path, digest: str) -> None:
    """Remove what interrupted builds of this runtime left behind; its lock is held, so nobody works there."""
    for pattern in (f".work-{digest}-*", f"wheels/.fetch-{digest}-*", f"{digest}.*partial"):
        for path in cache.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _prune(cache: Path, digest: str) -> None:
    """Remove the archives beyond the last few: each is over a gigabyte, and building one again takes a minute."""
    others = [path for path in cache.glob("*.tar") if path.stem != digest and path.with_suffix(".json").is_file()]
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest_first[_KEPT_ARCHIVES - 1 :]:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def build(request: Request, cache: Path) -> tuple[Archive, bool]:
    """The archive for ``request`` and whether it had to be built. Interrupted anywhere, the next call converges."""
    digest = request.digest
    cache.mkdir(parents=True, exist_ok=True)
    with _only_one(cache, digest):
        there = find_archive(cache, digest)
        if there is not None:
            return there, False
        _sweep(cache, digest)
        seconds: dict[str, float] = {}

        def took(stage: str, since: float) -> float:
            now = time.monotonic()
            seconds[stage] = round(now - since, 1)
            return now

        clock = time.monotonic()
        built = built_wheels(request, cache)
        if built:
            clock = took("source", clock)
        wheels = {**_wheels(request, cache), **{name: Path(item.path) for name, item in built.items()}}
        clock = took("wheels", clock)
        source = normalized(request.description.source.name)
        packages = f"lib/python{request.target.python}/site-packages"
        with tempfile.TemporaryDirectory(prefix=f".work-{digest}-", dir=cache) as name:
            work, root = Path(name), Path(name, "tree")
            patched: Built | PatchedWheel
            if source in built:
                # Patched as a tree, before it was built.
                patched = built[source]
            else:
                patched = patch_wheel(
                    wheels[source],
                    work,
                    request.patches,
                    distribution="vllm",
                    prefix=request.description.local_version,
                    version_file=VERSION_FILE,
                    moved=request.description.patches_moved,
                )
                wheels[source] = Path(patched.path)
            clock = took("patch", clock)
            installed = _install(request, wheels.values(), root)
            clock = took("install", clock)
            entries = dict(installed.entries)
            if request.compile_python is not None:
                _compile(request.compile_python, root, packages)
                entries.update((entry.path, entry) for entry in _compiled_entries(root))
            clock = took("compile", clock)
            ordered = tuple(entries[path] for path in sorted(entries))
            manifest = Manifest(
                digest=digest,
                target=request.target,
                tree_sha256=tree_sha256(ordered),
                tree_bytes=sum(entry.size for entry in ordered),
                versions=_versions(root, packages, ("vllm", "ray", "torch")),
                entries=ordered,
            )
            path, info_path = archive_paths(cache, digest)
            partial = path.with_suffix(".tar.partial")
            with partial.open("wb") as out:
                archive_sha256, archive_bytes = pack(root, manifest, out)
            # The description goes first and comes last: an archive without it does not count.
            info_path.unlink(missing_ok=True)
            partial.replace(path)
            took("pack", clock)
        archive = Archive(
            digest=digest,
            path=str(path),
            archive_sha256=archive_sha256,
            archive_bytes=archive_bytes,
            tree_sha256=manifest.tree_sha256,
            look_sha256=manifest_look(manifest),
            tree_bytes=manifest.tree_bytes,
            files=len(ordered),
            target=asdict(request.target),
            versions=manifest.versions,
            applied=patched.applied,
            upstreamed=patched.upstreamed,
            compiled=request.compile_python is not None,
            unused_slim=installed.unused_slim,
            seconds=seconds,
        )
        seen = path.stat()
        write_info(info_path, archive, [seen.st_size, seen.st_mtime_ns])
        _prune(cache, digest)
        return archive, True
