# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wheels from git sources: checkout at one commit, patch series, build under limits, kept by a key.

The key names everything that decides the wheel, so a source is compiled once and the result can be carried to a
site without a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    BuildPlan,
    Source,
    Target,
    normalized,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import (
    Patch,
    apply_series,
    local_version,
    parse_wheel_name,
)

__all__ = [
    "Built",
    "Limits",
    "SourceError",
    "build_environment",
    "build_key",
    "build_wheel",
    "failure_sentence",
    "find_built",
    "limited",
    "limits_for",
]

# Part of every key: raise it when the way of building changes what comes out.
_KEY_FORMAT = 1
_FETCH_TIMEOUT_S = 1800
# What a compiler may leave to everything else on the machine.
_HOST_RESERVE_BYTES = 4 * 1024**3
_OUT_OF_MEMORY = re.compile(
    r"Killed signal terminated program|virtual memory exhausted|out of memory|Out of memory|OOM|MemoryError"
    r"|[Cc]annot allocate memory|std::bad_alloc|memory allocation of \d+ bytes failed|exit code: -9\b"
)
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
# What of the user's environment reaches a build: how to get out, and which certificates to trust.
_PASSED_ON = re.compile(r"^((http|https|no|all)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|PIP_.*|CCACHE_.*)$", re.I)


class SourceError(ValueError):
    """A source cannot be turned into a wheel; the text says what, where and what to do."""


@dataclass(frozen=True)
class Limits:
    """What one build may take of the build host. ``scope`` is who enforces it: systemd (system, user) or rlimit."""

    jobs: int
    memory_bytes: int
    timeout_s: int
    scope: str


@dataclass(frozen=True)
class Built:
    """A wheel that was built here, or carried here."""

    path: str
    name: str
    version: str
    sha256: str
    applied: tuple[str, ...]
    upstreamed: tuple[str, ...]
    seconds: float


def build_key(source: Source, plan: BuildPlan, target: Target, version: str, patches: Sequence[Patch]) -> str:
    """Sixteen digits that name everything that decides a built wheel. How fast it is built has no part in it."""
    content = {
        "format": _KEY_FORMAT,
        "source": {"name": normalized(source.name), "commit": source.commit, "submodules": source.submodules},
        "version": version,
        "patches": [[patch.name, hashlib.sha256(patch.text).hexdigest()] for patch in patches],
        "target": asdict(target),
        "requires": sorted(plan.requires),
        "environment": sorted(plan.environment),
        "cuda_arch_list": plan.cuda_arch_list,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def limits_for(plan: BuildPlan, cpus: int, available_bytes: int, scope: str) -> Limits:
    """The limits of ``plan`` on a host with this many cores and bytes; SourceError when not one job fits."""
    memory = plan.memory_max_bytes
    if memory is None:
        memory = available_bytes - _HOST_RESERVE_BYTES
    jobs = plan.max_jobs if plan.max_jobs is not None else min(cpus, memory // plan.job_bytes)
    if memory <= 0 or jobs < 1:
        raise SourceError(
            f"a build needs {plan.job_bytes / 1024**3:.1f} GiB for one compiler and the build host leaves it"
            f" {max(0, memory) / 1024**3:.1f} GiB of {available_bytes / 1024**3:.1f} GiB that are free: free memory"
            " there, or set runtime.build.memory_max_bytes and runtime.build.max_jobs"
        )
    return Limits(jobs, memory, plan.timeout_s, scope)


def limited(command: Sequence[str], limits: Limits) -> list[str]:
    """``command`` so that it cannot take more than its memory: in a scope of systemd where there is one."""
    if limits.scope == "rlimit":
        # For each process alone, which is the best that can be had without a service manager.
        return ["prlimit", f"--as={limits.memory_bytes}", "--", *command]
    manager = ["--user"] if limits.scope == "user" else []
    properties = [f"--property=MemoryMax={limits.memory_bytes}", "--property=MemorySwapMax=0"]
    return ["systemd-run", *manager, "--scope", "--quiet", "--collect", *properties, "--", *command]


# Whether the limit of the group that this runs in is the one that was asked for. A systemd in a container makes the
# scope and sets no limit; on a host that counts memory in a hierarchy of its own (cgroup v1) the file is elsewhere.
_LIMIT_IS_SET = (
    "own=$(sed -n 's/^0:://p' /proc/self/cgroup); old=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup);"
    ' cat "/sys/fs/cgroup$own/memory.max" "/sys/fs/cgroup/memory$old/memory.limit_in_bytes" 2>/dev/null | grep -qx '
)
_TRIED_BYTES = 1 << 30


def usable_scope(run: Callable[[Sequence[str]], int]) -> str:
    """Who can enforce a limit on this host; ``run`` gives the exit code of a command."""
    if os.path.isdir("/run/systemd/system") and shutil.which("systemd-run"):
        scope = "system" if os.geteuid() == 0 else "user"
        look = ["sh", "-c", f"{_LIMIT_IS_SET}{_TRIED_BYTES}"]
        if run(limited(look, Limits(1, _TRIED_BYTES, 10, scope))) == 0:
            return scope
    return "rlimit"


def build_environment(
    source: Source,
    plan: BuildPlan,
    limits: Limits,
    version: str,
    programs: str,
    home: str,
    commit_time: int,
    inherited: Mapping[str, str],
) -> dict[str, str]:
    """Every variable that a build gets, and no other."""
    jobs = str(limits.jobs)
    path = f"{programs}:{plan.cuda_home}/bin:/usr/bin:/bin" if plan.cuda_home else f"{programs}:/usr/bin:/bin"
    suffix = re.sub(r"[^A-Z0-9]", "_", source.name.upper())
    variables = {name: value for name, value in inherited.items() if _PASSED_ON.match(name)}
    variables.update(
        {
            "PATH": path,
            "HOME": home,
            "LC_ALL": "C.UTF-8",
            # The wheel's times: those of the commit, not of the clock.
            "SOURCE_DATE_EPOCH": str(commit_time),
            # A shallow checkout has no tags to learn a version from.
            f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{suffix}": version,
            "SETUPTOOLS_SCM_PRETEND_VERSION": version,
            "VLLM_VERSION_OVERRIDE": version,
            "MAX_JOBS": jobs,
            "CMAKE_BUILD_PARALLEL_LEVEL": jobs,
            "CARGO_BUILD_JOBS": jobs,
            "MAKEFLAGS": f"-j{jobs}",
            "NINJAFLAGS": f"-j{jobs}",
            # Each nvcc would start threads of its own, beside MAX_JOBS.
            "NVCC_THREADS": "1",
        }
    )
    if plan.cuda_home:
        variables["CUDA_HOME"] = plan.cuda_home
    if plan.cuda_arch_list:
        variables["TORCH_CUDA_ARCH_LIST"] = plan.cuda_arch_list
        variables["FLASHINFER_CUDA_ARCH_LIST"] = plan.cuda_arch_list
    variables.update(plan.environment)
    return variables


def failure_sentence(source: Source, limits: Limits, code: int | None, output: str, log: str, seconds: float) -> str:
    """Why a build ended; ``code`` None means that its time was up."""
    gib = limits.memory_bytes / 1024**3
    if code is None:
        return (
            f"the build of {source.name} was stopped after {seconds:.0f} s, the limit is {limits.timeout_s} s: raise"
            f" runtime.build.timeout_s or runtime.build.max_jobs (now {limits.jobs}); its output: {log}"
        )
    if code in _KILLED or _OUT_OF_MEMORY.search(output):
        return (
            f"the build of {source.name} ran out of memory at {gib:.1f} GiB with {limits.jobs} jobs: set"
            f" runtime.build.max_jobs to {max(1, limits.jobs // 2)}, or raise runtime.build.memory_max_bytes if the"
            f" build host has more; its output: {log}"
        )
    errors = [line.strip() for line in output.splitlines() if re.search(r"\b(error|Error|ERROR|fatal)\b", line)]
    last = errors[-1] if errors else (output.strip().splitlines() or ["it said nothing"])[-1]
    return f"the build of {source.name} ended with {code}: {last[:300]}; its output: {log}"


def find_built(folders: Sequence[Path], key: str) -> Built | None:
    """The wheel of ``key`` in one of ``folders``, if its bytes are those that were built."""
    for folder in folders:
        try:
            raw = json.loads((folder / key / "built.json").read_text())
            path = folder / key / str(raw["file"])
            if hashlib.sha256(path.read_bytes()).hexdigest() != raw["sha256"]:
                continue
            return Built(
                str(path),
                str(raw["name"]),
                str(raw["version"]),
                str(raw["sha256"]),
                tuple(raw["applied"]),
                tuple(raw["upstreamed"]),
                float(raw["seconds"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _git(arguments: Sequence[str], folder: Path, variables: Mapping[str, str], what: str) -> str:
    command = ["git", "-c", "advice.detachedHead=false", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=dict(variables),
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise SourceError("the build host has no git: install it") from exc
    except subprocess.TimeoutExpired as exc:
        raise SourceError(f"{what} did not end within {_FETCH_TIMEOUT_S} s") from exc
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["it said nothing"]
        words = next((line for line in lines if re.match(r"(fatal|error):", line)), lines[-1])
        raise SourceError(f"{what} failed: {words[:300]}")
    return done.stdout.strip()


def checkout(source: Source, folder: Path, inherited: Mapping[str, str]) -> int:
    """Put ``source`` at its commit, with its submodules, into the empty ``folder``; returns the commit's time."""
    repository, commit = source.repository or "", source.commit or ""
    variables = {name: value for name, value in inherited.items() if _PASSED_ON.match(name)}
    variables.update(
        {
            "PATH": inherited.get("PATH", "/usr/bin:/bin"),
            "HOME": inherited.get("HOME", "/"),
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }
    )
    if repository.startswith("file://"):
        variables.update({"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow"})
        variables["GIT_CONFIG_VALUE_0"] = "always"
    _git(["init", "--quiet"], folder, variables, f"making a checkout in {folder}")
    what = f"fetching {commit} of {repository} for {source.name}"
    try:
        _git(["fetch", "--quiet", "--depth", "1", repository, commit], folder, variables, what)
    except SourceError:
        # Some servers give only what a branch or tag points to: then everything comes.
        _git(["fetch", "--quiet", "--tags", repository, "+refs/heads/*:refs/remotes/origin/*"], folder, variables, what)
    _git(["checkout", "--quiet", "--detach", commit], folder, variables, f"checking {commit} of {source.name} out")
    seen = _git(["rev-parse", "HEAD"], folder, variables, "asking for the commit")
    if seen != commit:
        raise SourceError(f"{repository} gave the commit {seen} for {source.name}, runtime wants {commit}")
    if source.submodules:
        modules = ["submodule", "update", "--quiet", "--init", "--recursive", "--depth", "1"]
        _git(modules, folder, variables, f"fetching the submodules of {source.name} at {commit}")
    return int(_git(["log", "-1", "--format=%ct"], folder, variables, "asking for the commit's time"))


def patch_tree(folder: Path, patches: Sequence[Patch], moved: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Apply the series to a checkout, all of it or nothing; returns what was applied and what was there already."""

    def read(path: str) -> bytes | None:
        try:
            return (folder / path).read_bytes()
        except FileNotFoundError:
            return None

    result = apply_series(read, patches, moved=moved)
    for path, data in result.contents.items():
        if data is None:
            (folder / path).unlink()
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return result.applied, result.upstreamed


def _run(command: Sequence[str], folder: Path, variables: Mapping[str, str], log: Path, timeout_s: float) -> int | None:
    """The exit code, or None when the time was up; what it starts ends with it."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def build_wheel(
    source: Source,
    plan: BuildPlan,
    target: Target,
    patches: Sequence[Patch],
    prefix: str,
    moved: bool,
    python: str | None,
    pip_python: str,
    index_options: Sequence[str],
    limits: Limits,
    built: Path,
    inherited: Mapping[str, str],
) -> Built:
    """Build ``source`` into the folder ``built``/KEY. It appears there only when it is complete.

    ``python`` is an interpreter of the target's minor version, ``index_options`` are pip's own (``--find-links``...).
    """
    version = local_version(source.version, prefix, patches)
    key = build_key(source, plan, target, version, patches)
    if python is None:
        raise SourceError(
            f"{source.name} has to be built for Python {target.python} and the build host has none: install"
            f" python{target.python} with its headers (python{target.python}-dev, python{target.python}-venv)"
        )
    built.mkdir(parents=True, exist_ok=True)
    log = built / f"{source.name}-{key}.log"
    log.unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".build-{key}-", dir=built) as name:
        work = Path(name)
        tree, made, home = work / "source", work / "made", work / "home"
        for folder in (tree, made, home):
            folder.mkdir()
        commit_time = checkout(source, tree, inherited)
        applied, upstreamed = patch_tree(tree, patches, moved)
        pip = [pip_python, "-m", "pip"]
        quiet = ["--disable-pip-version-check", "--no-input"]
        # Its own environment with exactly these, or the one that the source's pyproject.toml asks for.
        isolation: list[str] = []
        programs = work / "environment" / "bin"
        plain = {**inherited, "LC_ALL": "C.UTF-8"}
        make = [python, "-m", "venv", "--without-pip", str(work / "environment")]
        if _run(make, work, plain, log, _FETCH_TIMEOUT_S) != 0:
            raise SourceError(f"{python} cannot make a virtual environment: install python{target.python}-venv")
        pip += ["--python", str(programs / "python")]
        if plan.requires:
            isolation = ["--no-build-isolation"]
            command = [*pip, "install", "--quiet", *quiet, *index_options, *plan.requires]
            if _run(command, work, plain, log, _FETCH_TIMEOUT_S) != 0:
                raise SourceError(
                    f"pip cannot install what the build of {source.name} needs ({', '.join(plan.requires)}):"
                    f" {_last_error(log)}; its output: {log}"
                )
        variables = build_environment(source, plan, limits, version, str(programs), str(home), commit_time, inherited)
        command = [*pip, "wheel", *quiet, *isolation, "--no-deps", *index_options, "--wheel-dir", str(made), str(tree)]
        before = time.monotonic()
        code = _run(limited(command, limits), work, variables, log, limits.timeout_s)
        if code != 0:
            output = log.read_text(errors="replace")
            raise SourceError(failure_sentence(source, limits, code, output, str(log), time.monotonic() - before))
        wheels = [path for path in made.glob("*.whl") if _is_of(path, source.name)]
        if len(wheels) != 1:
            names = ", ".join(sorted(path.name for path in made.iterdir())) or "nothing"
            raise SourceError(f"the build of {source.name} made {names}, expected one wheel of that name")
        result = Built(
            str(built / key / wheels[0].name),
            normalized(source.name),
            parse_wheel_name(wheels[0].name).version,
            hashlib.sha256(wheels[0].read_bytes()).hexdigest(),
            applied,
            upstreamed,
            round(time.monotonic() - started, 1),
        )
        kept = work / "kept"
        kept.mkdir()
        wheels[0].rename(kept / wheels[0].name)
        content = {**asdict(result), "file": wheels[0].name, "commit": source.commit}
        content.pop("path")
        (kept / "built.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(built / key, ignore_errors=True)
        kept.rename(built / key)
    return result


def _is_of(path: Path, name: str) -> bool:
    try:
        return normalized(parse_wheel_name(path.name).name) == normalized(name)
    except ValueError:
        return False


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    errors = [line.split("ERROR:", 1)[1].strip() for line in lines if "ERROR:" in line]
    return re.sub(r"\(from versions: .*\)", "", (errors or lines)[-1])[:300]
