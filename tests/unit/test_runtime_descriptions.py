# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtimes that are shipped: every file that they name is there, and each has one digest."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils import _runtime_source
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Description,
    Target,
    description_from,
    digest_of,
    normalized,
    parse_lock,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_build import Request, built_wheels
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_lock import requirement_lines
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_source import Limits, limits_for
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch
from tests.fixtures.wheels import ROLE, before, make_wheel

GIB = 1024**3
FILES = ROLE / "files"
PROFILES = ROLE.parent / "profile" / "vars"


def read(path: Path) -> t.Any:
    return yaml.safe_load(path.read_text())["profile_content"]["runtime"]


SHIPPED = {
    "the fork": read(PROFILES / "glm52_128k_dcp4_mtp1.yml"),
    "upstream": read(PROFILES / "qwen3_32b.yml"),
    "the lab": read(PROFILES / "lab_cpu.yml"),
}


def patches_of(description: Description) -> list[Patch]:
    folder = FILES / "patches" / description.series
    return [Patch(name, (folder / name).read_bytes()) for name in description.patch_files]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_that_a_description_names_is_there(name: str) -> None:
    description = description_from(SHIPPED[name])
    assert patches_of(description)
    for python in (description.python,) if description.python else ("3.11", "3.12", "3.13"):
        lock = FILES / "locks" / f"{description.lock}.py{python}.txt"
        if description.source.kind == "git":
            # Part of it is on no index: the build host makes the lock from these.
            assert requirement_lines((FILES / "locks" / f"{description.lock}.in").read_text())
            continue
        entries = {entry.name: entry for entry in parse_lock(lock.read_text())}
        assert entries[normalized(description.source.name)].version == description.source.version
        assert entries["ray"].version == "2.60.0"
        assert all(entry.hashes for entry in entries.values())


def test_the_fork_is_built_with_the_seeds_pins() -> None:
    description = description_from(SHIPPED["the fork"])
    pins = {source.name: source.commit for source in description.git_sources}
    assert pins == {
        "vllm": "a663653d8cf3a66ee3c0060aea8c2fd28e3f1362",
        "b12x": "9cd63a726e9b188701f3dff0e6b95d7814c42fc5",
        "flashinfer-python": "9c5ed7c194e7412780862491742fc655daaad6ac",
    }
    # What vLLM builds against comes before it.
    assert description.git_sources[-1].name == "vllm"
    assert description.build.cuda_arch_list == "12.1a"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_description_gives_the_same_digest(name: str) -> None:
    description = description_from(SHIPPED[name])
    target = Target("3.12", "aarch64", "2.39")
    patches = {patch.name: patch.text for patch in patches_of(description)}
    lock = f"ray==2.60.0 --hash=sha256:{'a' * 64}\n"
    first = digest_of(description, target, lock, patches)
    assert digest_of(description_from(SHIPPED[name]), target, lock, patches) == first
    # How fast and where it is built is not what it is.
    for key, value in (("max_jobs", 1), ("timeout_s", 5), ("memory_max_bytes", 1 << 30)):
        change = {**SHIPPED[name], "build": {**SHIPPED[name].get("build", {}), key: value}}
        assert digest_of(description_from(change), target, lock, patches) == first
    change = {**SHIPPED[name], "local_version": "other"}
    assert digest_of(description_from(change), target, lock, patches) != first


@dataclass(frozen=True)
class Builder:
    """Stands for git and for the programs that build: it keeps what they are told, and makes what they would make."""

    git: list[tuple[str, ...]]
    programs: list[tuple[tuple[str, ...], dict[str, str], float]]
    files: dict[str, bytes]

    def run_git(self, arguments: t.Sequence[str], folder: Path, variables: t.Mapping[str, str], what: str) -> str:
        self.git.append(tuple(arguments))
        assert variables["GIT_TERMINAL_PROMPT"] == "0", what
        if arguments[0] == "checkout":
            for path, data in self.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
            return ""
        last = next(words[-1] for words in reversed(self.git) if words[0] == "checkout") if len(self.git) > 2 else ""
        return {"rev-parse": last, "log": "1782864000"}.get(arguments[0], "")

    def run(
        self, command: t.Sequence[str], folder: Path, variables: t.Mapping[str, str], log: Path, timeout_s: float
    ) -> int:
        self.programs.append((tuple(command), dict(variables), timeout_s))
        log.touch()
        if "wheel" in command:
            name = next(key for key in variables if key.startswith("SETUPTOOLS_SCM_PRETEND_VERSION_FOR_"))
            version = variables[name]
            if name.endswith("_VLLM"):
                text = (folder / "source/vllm/distributed/parallel_state.py").read_text()
                assert 'os.getenv("VLLM_DISABLE_TP_MQ_BROADCASTER", "0") == "1"' in text
            made = Path(command[command.index("--wheel-dir") + 1])
            make_wheel(made, name.rpartition("_FOR_")[2].lower(), version, {"x.py": b""}, "cp312-cp312-linux_aarch64")
        return 0


def test_the_fork_is_built_with_these_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA and the fork's repository are nowhere near a test: what would be run there is compared word for word."""
    description = description_from(SHIPPED["the fork"])
    # A Spark: 20 cores, 118 GiB free, systemd, and this build alone.
    limits = limits_for(description.build, 20, 118 * GIB, "system")
    assert limits == Limits(jobs=19, memory_bytes=114 * GIB, timeout_s=21600, scope="system")
    patches = tuple(patches_of(description))
    # The fork has the same lines at other places.
    files = {path: b"# moved\n" * 40 + data for path, data in before(patch.text for patch in patches).items()}
    builder = Builder([], [], files)
    monkeypatch.setattr(_runtime_source, "_git", builder.run_git)
    monkeypatch.setattr(_runtime_source, "_run", builder.run)
    target, python = Target("3.12", "aarch64", "2.39"), "/usr/bin/python3.12"
    user = {"PATH": "/home/owner/bin", "HOME": "/home/owner", "HTTPS_PROXY": "http://proxy:3128", "CUDA_HOME": "/old"}
    request = Request(description, target, "", patches, "/usr/bin/python3", python, None, limits, user)
    made = built_wheels(request, tmp_path)

    assert {name: built.version.split("+")[0] for name, built in made.items()} == {
        "b12x": "0.0.0",
        "flashinfer-python": "0.0.0",
        "vllm": "0.11.2.dev279",
    }
    assert made["vllm"].version.startswith("0.11.2.dev279+glm52.sparkrig.")
    assert made["vllm"].applied == ("0001-no-mq-broadcaster-on-request.patch",)
    for source in description.git_sources:
        commands = [words for words in builder.git if source.commit in words]
        assert commands == [
            ("fetch", "--quiet", "--depth", "1", source.repository, source.commit),
            ("checkout", "--quiet", "--detach", source.commit),
        ]
    modules = ("submodule", "update", "--quiet", "--init", "--recursive", "--depth", "1")
    assert builder.git.count(modules) == 2

    steps = [words for words, _variables, _timeout in builder.programs]
    # Each in an environment of its own, made from what its pyproject.toml asks for.
    assert [words[:4] for words in steps[::2]] == [(python, "-m", "venv", "--without-pip")] * 3
    for (words, variables, timeout_s), source in zip(builder.programs[1::2], description.git_sources, strict=True):
        work = Path(words[-1]).parent
        assert words == (
            *("systemd-run", "--scope", "--quiet", "--collect"),
            *(f"--property=MemoryMax={114 * GIB}", "--property=MemorySwapMax=0", "--"),
            *("/usr/bin/python3", "-m", "pip", "--python", f"{work}/environment/bin/python", "wheel"),
            *(
                "--disable-pip-version-check",
                "--no-input",
                "--no-deps",
                "--wheel-dir",
                f"{work}/made",
                f"{work}/source",
            ),
        )
        assert timeout_s == 21600
        version = made[source.name].version if source.name == "vllm" else source.version
        assert variables == {
            "HTTPS_PROXY": "http://proxy:3128",
            "PATH": f"{work}/environment/bin:/usr/local/cuda/bin:/usr/bin:/bin",
            "HOME": f"{work}/home",
            "LC_ALL": "C.UTF-8",
            "SOURCE_DATE_EPOCH": "1782864000",
            f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{source.name.upper().replace('-', '_')}": version,
            "SETUPTOOLS_SCM_PRETEND_VERSION": version,
            "VLLM_VERSION_OVERRIDE": version,
            "MAX_JOBS": "19",
            "CMAKE_BUILD_PARALLEL_LEVEL": "19",
            "CARGO_BUILD_JOBS": "19",
            "MAKEFLAGS": "-j19",
            "NINJAFLAGS": "-j19",
            "NVCC_THREADS": "1",
            "CUDA_HOME": "/usr/local/cuda",
            "TORCH_CUDA_ARCH_LIST": "12.1a",
            "FLASHINFER_CUDA_ARCH_LIST": "12.1a",
            "VLLM_TARGET_DEVICE": "cuda",
        }
    # Again: what was built is there.
    seen = len(builder.programs)
    assert built_wheels(request, tmp_path) == made
    assert len(builder.programs) == seen


def test_what_the_fork_needs_besides_is_pinned() -> None:
    lines = requirement_lines((FILES / "locks" / "glm52-b12x.in").read_text())
    assert lines == ("ray==2.60.0", "nvidia-cutlass-dsl[cu13]==4.5.2")
