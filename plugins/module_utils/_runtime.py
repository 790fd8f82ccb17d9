# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a runtime is: its description, its digest, its lock, the wheels that fit, its manifest.

Pure data in, data out. Building is in ``_runtime_build``, a node's trees are in ``_runtime_nodes``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_environment import VARIABLE
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import file_row, link_row, look_sha256

__all__ = [
    "BuildPlan",
    "Description",
    "LockEntry",
    "Manifest",
    "ManifestEntry",
    "SlimRule",
    "Source",
    "Target",
    "description_from",
    "digest_of",
    "manifest_from_json",
    "manifest_look",
    "manifest_to_json",
    "minor_version",
    "normalized",
    "odd_ones_out",
    "parse_lock",
    "platform_tags",
    "tree_sha256",
]

# Part of every digest: raise it when the way of building changes what comes out.
BUILD_FORMAT = 1
MANIFEST_FORMAT = 1
MACHINES = ("aarch64", "x86_64")
SLIM_ACTIONS = ("drop", "strip")
SOURCE_KINDS = ("wheel", "git", "path")
_DIGEST_LENGTH = 16
_OLDEST_GLIBC_MINOR = {"x86_64": 5, "aarch64": 17}
# What PEP 600 calls the older names of three glibc versions.
_LEGACY_TAGS = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}

_MINOR = re.compile(r"^3\.(?P<minor>\d+)$")
_GLIBC = re.compile(r"^2\.(?P<minor>\d+)$")
_PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)(?P<rest>.*)$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)")
_REPOSITORY = re.compile(r"^(https|ssh|file)://\S+$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_ARCHITECTURES = re.compile(r"^\d+\.\d[a-z]?([ ;]\d+\.\d[a-z]?)*$")
# A path with an empty part, `.` or `..`.
_OUTSIDE = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")


@dataclass(frozen=True)
class Source:
    """Where a wheel comes from: an index (``wheel``), a folder with all wheels (``path``), a repository (``git``)."""

    kind: str
    name: str
    version: str
    directory: str | None
    repository: str | None = None
    commit: str | None = None
    submodules: bool = False


@dataclass(frozen=True)
class BuildPlan:
    """How wheels are built from ``git`` sources, and what a build may take of the build host."""

    # Pins of the build's own environment; empty means what the source's pyproject.toml asks for.
    requires: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    cuda_arch_list: str | None = None
    cuda_home: str | None = None
    # None: as many as fit into the memory, at job_bytes each.
    max_jobs: int | None = None
    job_bytes: int = 4 * 1024**3
    # None: what is free, less what everything else on the host needs.
    memory_max_bytes: int | None = None
    timeout_s: int = 14400


@dataclass(frozen=True)
class SlimRule:
    """Files that a node does not need (``drop``), or needs without their symbols (``strip``), and why."""

    action: str
    paths: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Description:
    """One runtime, as a profile describes it."""

    python: str | None
    machine: str | None
    glibc: str
    source: Source
    local_version: str
    series: str
    patch_files: tuple[str, ...]
    lock: str
    fallback_index_urls: tuple[str, ...]
    slim: tuple[SlimRule, ...]
    # More packages that are built from repositories, and how.
    packages: tuple[Source, ...] = ()
    build: BuildPlan = BuildPlan()
    # Whether a hunk may stand at another line than it says, if its lines stand there and nowhere else.
    patches_moved: bool = False

    @property
    def git_sources(self) -> tuple[Source, ...]:
        """Everything that has to be built, vLLM last: what it builds against may be among the others."""
        own = (self.source,) if self.source.kind == "git" else ()
        return (*self.packages, *own)


@dataclass(frozen=True)
class Target:
    """The machines that a tree is for."""

    python: str
    machine: str
    glibc: str


@dataclass(frozen=True)
class LockEntry:
    """One pinned distribution and the hashes that its wheels may have."""

    name: str
    version: str
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class ManifestEntry:
    """One path of a tree: a file with its hash, or a symlink with its target (mode 0 and size 0)."""

    path: str
    mode: int
    size: int
    sha256: str | None
    link: str | None


@dataclass(frozen=True)
class Manifest:
    """Every path of a tree, and what the tree is for."""

    digest: str
    target: Target
    tree_sha256: str
    tree_bytes: int
    versions: dict[str, str]
    entries: tuple[ManifestEntry, ...]


def _mapping(value: object, what: str, known: Iterable[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {value!r}, expected a dictionary")
    allowed = sorted(known)
    for key in value:
        if key not in allowed:
            raise ValueError(f"{what} has the unknown key {key!r}; known are {', '.join(allowed)}")
    return {str(key): item for key, item in value.items()}


def _text(data: Mapping[str, Any], key: str, what: str, default: str | None = None) -> str:
    value = data.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise ValueError(f"{what}.{key} is {value!r}, expected a text")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"{what} is {value!r}, expected a list of texts")
    for item in value:
        if not isinstance(item, str) or not item:
            raise ValueError(f"{what} contains {item!r}, expected a text")
    return tuple(str(item) for item in value)


def _plain(name: str, what: str) -> str:
    if not _PLAIN_NAME.match(name):
        raise ValueError(f"{what} is {name!r}, expected a plain name without folders")
    return name


def minor_version(text: str) -> str:
    """``3.11`` of ``3.11`` or ``3.11.2``; ValueError for anything else."""
    match = re.match(r"^(3\.\d+)(?:\.\d+)?$", text)
    if match is None:
        raise ValueError(f"{text!r} is not a version of Python 3 (3.MINOR)")
    return match[1]


def _source(value: object, what: str = "runtime.source", kinds: Sequence[str] = SOURCE_KINDS) -> Source:
    keys = ("kind", "name", "version", "directory", "repository", "commit", "submodules")
    data = _mapping(value, what, keys)
    kind = _text(data, "kind", what)
    if kind not in kinds:
        raise ValueError(f"{what}.kind is {kind!r}, expected {' or '.join(repr(item) for item in kinds)}")
    for key, owner in (("directory", "path"), ("repository", "git"), ("commit", "git"), ("submodules", "git")):
        if data.get(key) is not None and kind != owner:
            raise ValueError(f"{what}.{key} is for the kind {owner!r}, not for {kind!r}")
    name, version = _text(data, "name", what), _text(data, "version", what)
    if kind == "path":
        return Source(kind, name, version, _text(data, "directory", what))
    if kind == "wheel":
        return Source(kind, name, version, None)
    repository, commit = _text(data, "repository", what), _text(data, "commit", what)
    if not _REPOSITORY.match(repository):
        raise ValueError(f"{what}.repository is {repository!r}, expected https://, ssh:// or file://")
    if not _COMMIT.match(commit):
        raise ValueError(
            f"{what}.commit is {commit!r}, expected all 40 hexadecimal digits: a branch can be another one tomorrow"
        )
    submodules = data.get("submodules", False)
    if not isinstance(submodules, bool):
        raise ValueError(f"{what}.submodules is {submodules!r}, expected true or false")
    return Source(kind, name, version, None, repository, commit, submodules)


def _packages(value: object) -> tuple[Source, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"runtime.packages is {value!r}, expected a list of git sources")
    packages = tuple(_source(item, f"runtime.packages[{number}]", ("git",)) for number, item in enumerate(value))
    names = [normalized(package.name) for package in packages]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"runtime.packages has {name} twice")
    return packages


def _count(data: Mapping[str, Any], key: str, default: int | None) -> int | None:
    value = data.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"runtime.build.{key} is {value!r}, expected a whole number above 0")
    return value


def _build_plan(value: object) -> BuildPlan:
    usual = BuildPlan()
    keys = ("requires", "environment", "cuda_arch_list", "cuda_home", "max_jobs", "job_bytes", "memory_max_bytes")
    data = _mapping(value, "runtime.build", (*keys, "timeout_s"))
    requires = _texts(data.get("requires", []), "runtime.build.requires")
    for item in requires:
        if not _REQUIREMENT.match(item):
            raise ValueError(f"runtime.build.requires has {item!r}, expected NAME==VERSION")
    environment = _mapping_of_texts(data.get("environment", {}), "runtime.build.environment")
    architectures = data.get("cuda_arch_list")
    if architectures is not None and not (isinstance(architectures, str) and _ARCHITECTURES.match(architectures)):
        raise ValueError(f"runtime.build.cuda_arch_list is {architectures!r}, expected a text such as '12.1a'")
    home = data.get("cuda_home")
    if home is not None and not (isinstance(home, str) and home.startswith("/")):
        raise ValueError(f"runtime.build.cuda_home is {home!r}, expected an absolute path")
    return BuildPlan(
        requires=requires,
        environment=environment,
        cuda_arch_list=architectures,
        cuda_home=home,
        max_jobs=_count(data, "max_jobs", None),
        job_bytes=_count(data, "job_bytes", None) or usual.job_bytes,
        memory_max_bytes=_count(data, "memory_max_bytes", None),
        timeout_s=_count(data, "timeout_s", None) or usual.timeout_s,
    )


def _mapping_of_texts(value: object, what: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {value!r}, expected a dictionary")
    for name, item in value.items():
        if not isinstance(name, str) or not VARIABLE.match(name) or not isinstance(item, str):
            raise ValueError(f"{what} has {name!r}: {item!r}, expected names of variables with texts")
    return tuple(sorted((str(name), str(item)) for name, item in value.items()))


def _slim(value: object) -> tuple[SlimRule, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"runtime.slim is {value!r}, expected a list of rules")
    rules = []
    for number, item in enumerate(value):
        what = f"runtime.slim[{number}]"
        data = _mapping(item, what, ("action", "paths", "why"))
        action = _text(data, "action", what)
        if action not in SLIM_ACTIONS:
            raise ValueError(f"{what}.action is {action!r}, expected one of {', '.join(SLIM_ACTIONS)}")
        paths = _texts(data.get("paths"), f"{what}.paths")
        if not paths:
            raise ValueError(f"{what}.paths is empty")
        rules.append(SlimRule(action, paths, _text(data, "why", what)))
    return tuple(rules)


def description_from(value: object) -> Description:
    """Read a runtime's description; ValueError names the key, the value and what is expected."""
    data = _mapping(
        value,
        "runtime",
        (
            "python",
            "machine",
            "glibc",
            "source",
            "local_version",
            "patches",
            "lock",
            "fallback_index_urls",
            "slim",
            "packages",
            "build",
        ),
    )
    python = data.get("python")
    if python is not None and (not isinstance(python, str) or not _MINOR.match(python)):
        raise ValueError(f"runtime.python is {python!r}, expected null or a text such as '3.11'")
    machine = data.get("machine")
    if machine is not None and machine not in MACHINES:
        raise ValueError(f"runtime.machine is {machine!r}, expected null or one of {', '.join(MACHINES)}")
    glibc = _text(data, "glibc", "runtime")
    if not _GLIBC.match(glibc):
        raise ValueError(f"runtime.glibc is {glibc!r}, expected a text such as '2.34'")
    none: dict[str, Any] = {"series": "", "files": []}
    patches = _mapping(data.get("patches", none), "runtime.patches", ("series", "files", "moved"))
    moved = patches.get("moved", False)
    if not isinstance(moved, bool):
        raise ValueError(f"runtime.patches.moved is {moved!r}, expected true or false")
    files = _texts(patches.get("files", []), "runtime.patches.files")
    series = _text(patches, "series", "runtime.patches", default="")
    if files:
        _plain(series, "runtime.patches.series")
    urls = _texts(data.get("fallback_index_urls", []), "runtime.fallback_index_urls")
    for url in urls:
        if not re.match(r"^(https|file)://", url):
            raise ValueError(f"runtime.fallback_index_urls contains {url!r}, expected https:// or file://")
    return Description(
        python=python,
        machine=machine,
        glibc=glibc,
        source=_source(data.get("source")),
        local_version=_text(data, "local_version", "runtime", default=""),
        series=series,
        patch_files=tuple(_plain(name, "runtime.patches.files") for name in files),
        lock=_plain(_text(data, "lock", "runtime"), "runtime.lock"),
        fallback_index_urls=urls,
        slim=_slim(data.get("slim", [])),
        packages=_packages(data.get("packages", [])),
        build=_build_plan(data.get("build", {})),
        patches_moved=moved,
    )


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest_of(description: Description, target: Target, lock: str, patches: Mapping[str, bytes]) -> str:
    """The sixteen digits that name a runtime. What is only a way to get there (URLs, folders, reasons) has no part."""
    if tuple(patches) != description.patch_files:
        raise ValueError(
            f"the patches given are {list(patches)}, the description names {list(description.patch_files)}"
        )
    content: dict[str, Any] = {
        "format": BUILD_FORMAT,
        "target": asdict(target),
        "source": {"name": normalized(description.source.name), "version": description.source.version},
        "local_version": description.local_version,
        "patches": [[name, hashlib.sha256(text).hexdigest()] for name, text in patches.items()],
        "lock": [[entry.name, entry.version, sorted(entry.hashes)] for entry in parse_lock(lock)],
        "slim": [[rule.action, list(rule.paths)] for rule in description.slim],
    }
    if description.git_sources:
        plan = description.build
        content["git"] = [
            [normalized(source.name), source.version, source.commit, source.submodules]
            for source in description.git_sources
        ]
        content["build"] = [sorted(plan.requires), sorted(plan.environment), plan.cuda_arch_list]
    if description.patches_moved:
        content["moved"] = True
    return hashlib.sha256(_canonical(content)).hexdigest()[:_DIGEST_LENGTH]


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_lock(text: str) -> tuple[LockEntry, ...]:
    """Read what ``uv pip compile`` writes: pinned requirements, their hashes, nothing else."""
    entries: dict[str, LockEntry] = {}
    joined = re.sub(r"\\\n", " ", text)
    for number, line in enumerate(joined.splitlines(), start=1):
        line = line.split(" #", 1)[0].strip()
        if not line or line.startswith("#"):
            continue
        match = _REQUIREMENT.match(line)
        if match is None:
            raise ValueError(f"the lock's entry {number} is {line[:80]!r}, expected NAME==VERSION and hashes")
        rest = _HASH.sub("", match["rest"]).strip()
        if rest:
            raise ValueError(f"the lock's entry {match['name']} has {rest[:80]!r}, expected only --hash=sha256:...")
        name = normalized(match["name"])
        if name in entries:
            raise ValueError(f"the lock has {name} twice")
        entries[name] = LockEntry(name, match["version"], tuple(_HASH.findall(match["rest"])))
    if not entries:
        raise ValueError("the lock is empty")
    return tuple(entries[name] for name in sorted(entries))


def platform_tags(target: Target) -> tuple[str, ...]:
    """The wheel platforms that run on ``target``, best first."""
    match = _GLIBC.match(target.glibc)
    if match is None or target.machine not in _OLDEST_GLIBC_MINOR:
        raise ValueError(f"glibc {target.glibc!r} on {target.machine!r} has no wheel platforms")
    tags = []
    for minor in range(int(match["minor"]), _OLDEST_GLIBC_MINOR[target.machine] - 1, -1):
        tags.append(f"manylinux_2_{minor}_{target.machine}")
        if minor in _LEGACY_TAGS:
            tags.append(f"{_LEGACY_TAGS[minor]}_{target.machine}")
    return (*tags, f"linux_{target.machine}")


def tree_sha256(entries: Iterable[ManifestEntry]) -> str:
    """One hash over paths, modes, sizes and contents, whatever their order."""
    rows = sorted([entry.path, entry.mode, entry.size, entry.sha256 or "", entry.link or ""] for entry in entries)
    return hashlib.sha256(_canonical(rows)).hexdigest()


def manifest_to_json(manifest: Manifest) -> bytes:
    """The manifest as it lies in the tree and in the archive."""
    rows = [[item.path, item.mode, item.size, item.sha256, item.link] for item in manifest.entries]
    head = {
        "format": MANIFEST_FORMAT,
        "digest": manifest.digest,
        "target": asdict(manifest.target),
        "tree_sha256": manifest.tree_sha256,
        "tree_bytes": manifest.tree_bytes,
        "versions": manifest.versions,
    }
    return _canonical({**head, "entries": rows}) + b"\n"


def manifest_from_json(data: bytes) -> Manifest:
    """Read a manifest and check it against its own ``tree_sha256``; ValueError says what is wrong."""
    try:
        raw = json.loads(data)
        if raw["format"] != MANIFEST_FORMAT:
            raise ValueError(f"the manifest has format {raw['format']!r}, expected {MANIFEST_FORMAT}")
        entries = tuple(
            ManifestEntry(str(path), int(mode), int(size), sha256, link)
            for path, mode, size, sha256, link in raw["entries"]
        )
        manifest = Manifest(
            digest=str(raw["digest"]),
            target=Target(**raw["target"]),
            tree_sha256=str(raw["tree_sha256"]),
            tree_bytes=int(raw["tree_bytes"]),
            versions={str(key): str(value) for key, value in raw["versions"].items()},
            entries=entries,
        )
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"the manifest cannot be read: {exc!r}") from exc
    for entry in entries:
        if _OUTSIDE.search(entry.path):
            raise ValueError(f"the manifest names {entry.path!r}, which is not a path inside the tree")
    seen = tree_sha256(entries)
    if seen != manifest.tree_sha256:
        raise ValueError(f"the manifest is damaged: its entries hash to {seen}, it says {manifest.tree_sha256}")
    return manifest


def manifest_look(manifest: Manifest) -> str:
    """What a look at the tree of this manifest must hash to."""
    rows = (
        link_row(entry.path, entry.link)
        if entry.link is not None
        else file_row(entry.path, 0o100000 | entry.mode, entry.size)
        for entry in manifest.entries
    )
    return look_sha256(manifest_to_json(manifest), rows)


def odd_ones_out(values: Mapping[str, str]) -> dict[str, str]:
    """The hosts whose value is not the one that most have; empty when all agree."""
    counts: dict[str, int] = {}
    for value in values.values():
        counts[value] = counts.get(value, 0) + 1
    if len(counts) < 2:
        return {}
    usual = max(sorted(counts), key=lambda value: counts[value])
    return {host: value for host, value in values.items() if value != usual}
