#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the archive of a runtime on the build host, once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_archive
short_description: Build a runtime (Python packages, Ray, patched vLLM) as one archive
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Makes one archive from a runtime's description. It fetches the wheels of a lock file and checks their hashes,
    applies a patch series to the vLLM wheel, lays everything out as one virtual environment that works at any path,
    byte-compiles it, and writes a manifest of every file.
  - The same description, lock and patches give the same digest. An archive that is in the cache already is not built
    again.
  - Wheels are fetched by C(pip) of the Python that runs this module, as its user configured it.
  - A C(git) source is checked out at its commit, patched, and built under limits of jobs, memory and time, once.
  - Where no lock could be shipped, the first run makes one with hashes and keeps it in the cache.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  action:
    support: full
    description: Answers by itself where the build host is the controller and the archive is in the cache.
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  description:
    description: The runtime as a profile describes it. See the README of the role P(sparkrig.serving.runtime#role).
    type: dict
    required: true
  lock:
    description:
      - The content of the lock file, as C(uv pip compile --generate-hashes) writes it.
      - When it is empty, that of O(wheelhouse) counts, then one that is made from O(lock_inputs).
    type: str
    default: ''
  lock_inputs:
    description: The requirements that a lock is made from when there is none.
    type: str
    default: ''
  lock_excludes:
    description: The distributions that stay out of a lock that is made.
    type: str
    default: ''
  wheelhouse:
    description:
      - A folder that O(export_dir) wrote. With it nothing is fetched and nothing is compiled, so no network is needed.
    type: path
  export_dir:
    description: A folder to put everything into that the runtime is built from, to be carried to another site.
    type: path
  patches:
    description: The content (a unified diff) of each patch that the description names, by its file name.
    type: dict
    default: {}
  python_version:
    description:
      - The minor version of Python that the nodes have, such as V(3.11). The description's C(python) wins.
      - When neither is given, it is that of C(/usr/bin/python3) on the build host.
    type: str
  cache_dir:
    description: Where archives and wheels are kept.
    type: path
    required: true
seealso:
  - module: sparkrig.serving.runtime_tree
  - module: sparkrig.serving.wheel_patch
"""

EXAMPLES = r"""
---
- name: Build the runtime of a profile
  sparkrig.serving.runtime_archive:
    description: "{{ profile_result.runtime }}"
    lock: "{{ lookup('ansible.builtin.file', 'locks/lab-cpu.py3.11.txt') }}"
    patches:
      0001-ray-device-key.patch: "{{ lookup('ansible.builtin.file', '0001-ray-device-key.patch', rstrip=false) }}"
    cache_dir: ~/.cache/sparkrig/runtime
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
actions:
  description: What was done, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["built the runtime 52a3cdf2bbc18c6a (34956 files, 1.26 GB) in 33 s"]
exported:
  description: The files that were new in O(export_dir).
  returned: when O(export_dir) is given
  type: list
  elements: str
archive:
  description: The archive. In check mode, when it would have to be built, only C(digest) and C(target) are known.
  returned: always
  type: dict
  contains:
    digest:
      description: The digest of the description with everything that it names.
      type: str
      sample: 52a3cdf2bbc18c6a
    path:
      description: Where the archive is on the build host.
      type: str
      sample: /home/me/.cache/sparkrig/runtime/52a3cdf2bbc18c6a.tar
    archive_sha256:
      description: The archive's own hash.
      type: str
    archive_bytes:
      description: The archive's size.
      type: int
    tree_sha256:
      description: One hash over every path, mode and content in it.
      type: str
    look_sha256:
      description:
        - One hash over its manifest and every path, mode, size and symlink, as a node sees them without reading a file
          (M(sparkrig.serving.runtime_tree)).
      type: str
    tree_bytes:
      description: The size of all files in it.
      type: int
    files:
      description: How many files it has.
      type: int
    target:
      description: The minor version of Python, the machine and the oldest glibc that it is for.
      type: dict
    versions:
      description: The versions of vLLM, Ray and PyTorch in it.
      type: dict
    applied:
      description: The patches that were applied.
      type: list
      elements: str
    upstreamed:
      description: The patches that vLLM has already, and that the series can do without.
      type: list
      elements: str
    compiled:
      description: Whether the modules are byte-compiled.
      type: bool
    unused_slim:
      description: The patterns of C(slim) that match nothing any more.
      type: list
      elements: str
    seconds:
      description: How long each stage of building took.
      type: dict
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Target,
    description_from,
    minor_version,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_build import (
    Request,
    build,
    built_wheels,
    export_wheelhouse,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_cache import (
    find_archive,
    known_lock,
    lock_path,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_lock import make_lock
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_source import (
    Limits,
    limits_for,
    usable_scope,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch


def _minor_of(python: str) -> str | None:
    """The minor version of an interpreter, or None when it does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _python_of_host() -> str:
    minor = _minor_of("/usr/bin/python3")
    if minor is None:
        raise ValueError(
            "the build host has no /usr/bin/python3 to learn the nodes' minor version from: set python_version"
        )
    return minor


def _compiler(minor: str) -> str | None:
    """An interpreter of this minor version, whose pycs the nodes can read."""
    candidates = [f"/usr/bin/python{minor}", sys.executable, shutil.which(f"python{minor}")]
    return next((item for item in candidates if item and _minor_of(item) == minor), None)


def _fail(module: AnsibleModule, text: str) -> NoReturn:
    module.fail_json(msg=f"The runtime cannot be built: {text}.")
    raise AssertionError("fail_json returns to nobody")


def _code_of(command: Sequence[str]) -> int:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        return 127


def _limits(request: Request) -> Limits | None:
    """What a build may take here; None when nothing is built from source."""
    if not request.description.git_sources or request.wheelhouse is not None:
        return None
    machine = platform.machine()
    if request.target.machine != machine:
        raise ValueError(
            f"{request.description.source.name} has to be built on {request.target.machine} and this build host is"
            f" {machine}: set runtime_build_host to the first node"
        )
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            cpus = len(os.sched_getaffinity(0))
            return limits_for(request.description.build, cpus, available, usable_scope(_code_of))
    raise ValueError("/proc/meminfo of the build host has no MemAvailable")


def _lock_path(params: dict[str, Any], request: Request, cache: Path) -> Path:
    return lock_path(cache, request.description, request.target, params["lock_inputs"], params["lock_excludes"])


def _new_lock(params: dict[str, Any], request: Request, cache: Path) -> str:
    built = [Path(item.path) for item in built_wheels(request, cache).values()]
    text = make_lock(
        params["lock_inputs"],
        params["lock_excludes"],
        request.target,
        built,
        request.pip_python,
        request.description.fallback_index_urls,
    )
    path = _lock_path(params, request, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
    return text


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    description = description_from(params["description"])
    python = description.python or (
        minor_version(params["python_version"]) if params["python_version"] else _python_of_host()
    )
    missing = [name for name in description.patch_files if name not in params["patches"]]
    if missing:
        raise ValueError(f"the description names the patches {', '.join(missing)}, whose content was not given")
    cache = Path(params["cache_dir"])
    request = Request(
        description=description,
        target=Target(python, description.machine or platform.machine(), description.glibc),
        lock="",
        patches=tuple(Patch(name, str(params["patches"][name]).encode()) for name in description.patch_files),
        pip_python=sys.executable,
        compile_python=_compiler(python),
        wheelhouse=Path(params["wheelhouse"]) if params["wheelhouse"] else None,
        inherited=dict(os.environ),
    )
    lock = known_lock(
        cache,
        description,
        request.target,
        params["lock"],
        params["lock_inputs"],
        params["lock_excludes"],
        request.wheelhouse,
    )
    request = replace(request, lock=lock)
    actions = []
    if not request.lock:
        if module.check_mode:
            return {
                "changed": True,
                "actions": [f"would make the lock {description.lock} and build the runtime in {cache}"],
                "archive": {"digest": "", "target": asdict(request.target)},
            }
        request = replace(request, limits=_limits(request))
        request = replace(request, lock=_new_lock(params, request, cache))
        actions.append(f"made the lock {_lock_path(params, request, cache)}")
    digest = request.digest
    archive, built = find_archive(cache, digest), False
    if archive is None and module.check_mode:
        return {
            "changed": True,
            "actions": [f"would build the runtime {digest} in {cache}"],
            "archive": {"digest": digest, "target": asdict(request.target)},
        }
    if archive is None:
        archive, built = build(replace(request, limits=_limits(request)), cache)
    if built:
        size = f"{archive.files} files, {archive.tree_bytes / 1e9:.2f} GB"
        actions.append(f"built the runtime {digest} ({size}) in {sum(archive.seconds.values()):.0f} s")
        actions += [
            f"the patch {name} is part of vLLM already: take it out of the series" for name in archive.upstreamed
        ]
        if not archive.compiled:
            module.warn(
                f"The build host has no Python {python} to byte-compile with: every start on a node compiles anew,"
                f" install python{python} there."
            )
        for pattern in archive.unused_slim:
            module.warn(f"runtime.slim has {pattern}, which matches no file: take it out.")
    result = {"changed": bool(actions), "actions": actions, "archive": asdict(archive)}
    if params["export_dir"] and not module.check_mode:
        folder = Path(params["export_dir"])
        exported = export_wheelhouse(replace(request, limits=_limits(request)), cache, folder)
        if exported:
            actions.append(f"put {len(exported)} files into the wheelhouse {folder}")
        result.update(changed=bool(actions), exported=list(exported))
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "description": {"type": "dict", "required": True},
            "lock": {"type": "str", "default": ""},
            "lock_inputs": {"type": "str", "default": ""},
            "lock_excludes": {"type": "str", "default": ""},
            "patches": {"type": "dict", "default": {}},
            "python_version": {"type": "str"},
            "cache_dir": {"type": "path", "required": True},
            "wheelhouse": {"type": "path"},
            "export_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (ValueError, OSError) as exc:
        _fail(module, str(exc).rstrip("."))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
