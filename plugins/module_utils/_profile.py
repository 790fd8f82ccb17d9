# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A serving profile: what its keys are, how overrides are laid over it, and which rules it has to hold.

Private to the collection. A profile is one plain dict; ``KEYS`` is the one home of what may stand in it.
Engine options keep vLLM's own names, so that a vLLM user can read a profile at sight.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._roce_rules import roce_problems
from ansible_collections.sparkrig.serving.plugins.module_utils._vllm_argv import OPTIONS, nearest

if t.TYPE_CHECKING:
    from collections.abc import Mapping

Value = t.Any

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Key:
    """What one key of a profile may hold.

    ``kind`` is one of ``str int float bool dict list``; ``minimum`` bounds numbers, ``choices`` strings.
    ``keys`` describes a dict whose keys are fixed; without it a dict is free-form. ``items`` describes each
    entry of a list, ``values`` each value of a free-form dict. ``words`` are strings that may stand instead of
    a number. Null is allowed unless ``required``.
    """

    kind: str
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    keys: Mapping[str, Key] | None = None
    items: Key | None = None
    values: Key | None = None
    words: tuple[str, ...] = ()


_MODEL = {
    "base": Key("str", required=True, pattern=r"/.+"),
    "overlay": Key("str", pattern=r"/.+"),
    "path": Key("str", required=True, pattern=r"/.+"),
}
_COMMIT = r"[0-9a-f]{40}"
_REPOSITORY = r"(https|ssh|file)://\S+"
_RUNTIME = {
    "build": Key(
        "dict",
        keys={
            "cuda_arch_list": Key("str"),
            "cuda_home": Key("str", pattern=r"/.+"),
            "environment": Key("dict", values=Key("str", required=True)),
            "job_bytes": Key("int", minimum=1),
            "max_jobs": Key("int", minimum=1),
            "memory_max_bytes": Key("int", minimum=1),
            "requires": Key("list", items=Key("str")),
            "timeout_s": Key("int", minimum=1),
        },
    ),
    "fallback_index_urls": Key("list", items=Key("str")),
    "glibc": Key("str", required=True, pattern=r"2\.[0-9]+"),
    "local_version": Key("str"),
    "lock": Key("str", required=True),
    "machine": Key("str", choices=("aarch64", "x86_64")),
    "packages": Key(
        "list",
        items=Key(
            "dict",
            keys={
                "commit": Key("str", required=True, pattern=_COMMIT),
                "kind": Key("str", required=True, choices=("git",)),
                "name": Key("str", required=True),
                "repository": Key("str", required=True, pattern=_REPOSITORY),
                "submodules": Key("bool"),
                "version": Key("str", required=True),
            },
        ),
    ),
    "patches": Key(
        "dict",
        keys={
            "files": Key("list", required=True, items=Key("str")),
            "moved": Key("bool"),
            "series": Key("str", required=True),
        },
    ),
    "python": Key("str", pattern=r"3\.[0-9]+"),
    "slim": Key(
        "list",
        items=Key(
            "dict",
            keys={
                "action": Key("str", choices=("drop", "strip")),
                "paths": Key("list", required=True, items=Key("str")),
                "why": Key("str", required=True),
            },
        ),
    ),
    "source": Key(
        "dict",
        required=True,
        keys={
            "commit": Key("str", pattern=_COMMIT),
            "directory": Key("str", pattern=r"/.+"),
            "kind": Key("str", required=True, choices=("git", "path", "wheel")),
            "name": Key("str", required=True),
            "repository": Key("str", pattern=_REPOSITORY),
            "submodules": Key("bool"),
            "version": Key("str", required=True),
        },
    ),
}
_FIT = {
    "attention_backend": Key("str"),
    "compute_capability": Key("str", pattern=r"[0-9]+\.[0-9]+"),
    "device": Key("str", required=True, choices=("cpu", "cuda")),
    "engine": Key("str", required=True),
    "head_bytes": Key("int", minimum=0),
    "kv_cache_layout": Key("str"),
    "kv_cache_limit_bytes": Key("int", minimum=1),
    "overhead_bytes": Key("int", required=True, minimum=0),
    "reserve_bytes": Key("int", required=True, minimum=0),
    "startup_bytes": Key("int", minimum=0),
    "weights_bytes": Key("int", minimum=0),
}

# What is measured, computed or claimed of a profile, and by whom. Speeds are of one user, from the first to the second.
_EXPECT = {
    "acceptance": Key("list", items=Key("float", required=True, minimum=0, maximum=1)),
    "kv_cache_tokens": Key("int", minimum=1),
    "markers": Key("list", items=Key("str", required=True)),
    "max_concurrency": Key("float", minimum=0),
    "max_model_len": Key("int", minimum=1),
    "num_blocks": Key("int", minimum=1),
    "prefill_tokens_per_s": Key("list", items=Key("float", required=True, minimum=0)),
    "source": Key("str"),
    "tokens_per_s": Key("list", items=Key("float", required=True, minimum=0)),
}

# What `bench` measures: every length of a prompt with every number of requests at once.
_BENCH = {
    "concurrency": Key("list", required=True, items=Key("int", required=True, minimum=1)),
    "output_tokens": Key("int", required=True, minimum=2),
    "prompt_tokens": Key("list", required=True, items=Key("int", required=True, minimum=1)),
    "requests": Key("int", required=True, minimum=1),
    "warmup": Key("int", required=True, minimum=0),
}

# What every profile is asked for, and what the collection itself reads or bounds.
_OWN_KEYS: Mapping[str, Key] = {
    "bench": Key("dict", required=True, keys=_BENCH),
    "block_size": Key("int", minimum=1),
    "dcp_comm_backend": Key("str", choices=("a2a", "ag_rs")),
    "dcp_kv_cache_interleave_size": Key("int", minimum=1),
    "decode_context_parallel_size": Key("int", required=True, minimum=1),
    "description": Key("str", required=True),
    "distributed_executor_backend": Key("str", required=True, choices=("mp", "ray")),
    "environment": Key("dict", required=True, values=Key("str", required=True)),
    "expect": Key("dict", required=True, keys=_EXPECT),
    "fit": Key("dict", required=True, keys=_FIT),
    "gpu_memory_utilization": Key("float", minimum=0.01, maximum=1.0),
    "hf_overrides": Key("dict"),
    "host": Key("str", required=True),
    "kv_cache_dtype": Key("str", required=True),
    "kv_cache_memory_bytes": Key("int", required=True, minimum=1, words=("auto",)),
    "max_cudagraph_capture_size": Key("int", minimum=1),
    "max_model_len": Key("int", required=True, minimum=-1),
    "max_num_batched_tokens": Key("int", required=True, minimum=1),
    "max_num_seqs": Key("int", required=True, minimum=1),
    "model": Key("dict", required=True, keys=_MODEL),
    "mp": Key("dict", keys={"port": Key("int", required=True, minimum=1024, maximum=65534)}),
    "name": Key("str", required=True),
    "pipeline_parallel_size": Key("int", required=True, minimum=1),
    "port": Key("int", required=True, minimum=1, maximum=65535),
    "ray": Key(
        "dict",
        required=True,
        keys={
            "object_store_memory": Key("int", required=True, minimum=78643200),
            "port": Key("int", required=True, minimum=1, maximum=65535),
        },
    ),
    "requires": Key(
        "dict",
        required=True,
        keys={
            "disk_free_bytes": Key("int", required=True, minimum=0),
            "memory_total_bytes": Key("int", required=True, minimum=0),
        },
    ),
    "runtime": Key("dict", required=True, keys=_RUNTIME),
    "seed": Key("int", minimum=0),
    "served_model_name": Key("str", required=True),
    "speculative_config": Key("dict"),
    "tensor_parallel_size": Key("int", required=True, minimum=1),
    "timeouts": Key(
        "dict",
        required=True,
        keys={
            "completion_s": Key("int", required=True, minimum=1),
            "hang_s": Key("int", required=True, minimum=1),
            "memory_s": Key("int", required=True, minimum=1),
            "ray_s": Key("int", required=True, minimum=1),
            "serve_s": Key("int", required=True, minimum=1),
            "stall_s": Key("int", required=True, minimum=1),
        },
    ),
}

_KIND_OF_OPTION = {"flag": "bool", "json": "dict"}

# The engine's other options are passed on as they are.
KEYS: Mapping[str, Key] = {
    **{name: Key(_KIND_OF_OPTION.get(kind, kind)) for name, kind in OPTIONS.items()},
    **_OWN_KEYS,
}

_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "dict": (dict,),
    "float": (float, int),
    "int": (int,),
    "list": (list,),
    "str": (str,),
}


def merged(base: Mapping[str, Value], overrides: Mapping[str, Value]) -> dict[str, Value]:
    """*base* with *overrides* laid over it: dicts are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in overrides.items():
        below = result.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _check_kind(path: str, value: Value, key: Key) -> None:
    """Raise ValueError when *value* is of the wrong type."""
    kinds = _TYPES[key.kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"profile key '{path}' is {value!r} ({type(value).__name__}); it must be of type {key.kind}")


def _shown(bound: float) -> str:
    """A bound as a person writes it: Ray's 78643200 is not 7.86432e+07."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _check_value(path: str, value: Value, key: Key) -> None:
    """Raise ValueError, naming *path*, the value and the rule, when *value* is not what *key* allows."""
    if value is None:
        if key.required:
            raise ValueError(f"profile key '{path}' has no value; it needs one ({key.kind})")
        return
    if isinstance(value, str) and value in key.words:
        return
    _check_kind(path, value, key)
    if key.minimum is not None and value < key.minimum:
        raise ValueError(f"profile key '{path}' is {value!r}; it must be at least {_shown(key.minimum)}")
    if key.maximum is not None and value > key.maximum:
        raise ValueError(f"profile key '{path}' is {value!r}; it must be at most {_shown(key.maximum)}")
    if key.choices and value not in key.choices:
        raise ValueError(f"profile key '{path}' is {value!r}; it must be one of {', '.join(key.choices)}")
    if key.pattern and not re.fullmatch(key.pattern, value):
        raise ValueError(f"profile key '{path}' is {value!r}; it must match {key.pattern}")
    if key.keys is not None:
        _check_keys(value, key.keys, f"{path}.")
    if key.items is not None:
        for index, item in enumerate(value):
            _check_value(f"{path}[{index}]", item, key.items)
    if key.values is not None:
        for name, item in value.items():
            _check_value(f"{path}.{name}", item, key.values)


def _check_keys(values: Mapping[str, Value], keys: Mapping[str, Key], prefix: str) -> None:
    """Check that every key is known and holds what it may, and that nothing required is missing."""
    for name in values:
        if name not in keys:
            raise ValueError(f"'{prefix}{name}' is no key of a profile{nearest(name, keys)}")
    for name, key in keys.items():
        if name not in values and key.required:
            raise ValueError(f"profile key '{prefix}{name}' is missing; it needs a value ({key.kind})")
        if name in values:
            _check_value(f"{prefix}{name}", values[name], key)


def _check_environment(environment: Mapping[str, str]) -> None:
    """The rules for the variables that every process of the rig gets."""
    for name, value in environment.items():
        if not _VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"environment has the variable {name!r}, which is no name of a variable")
        if "\n" in value:
            raise ValueError(f"environment.{name} is {value!r}; a value of more than one line cannot be passed on")
    for problem in roce_problems(environment, where="environment.", shared=True):
        raise ValueError(problem)


def _check_rules(profile: Mapping[str, Value]) -> None:
    """The rules between keys."""
    tp_size, dcp_size = profile["tensor_parallel_size"], profile["decode_context_parallel_size"]
    if tp_size % dcp_size != 0:
        raise ValueError(
            f"decode_context_parallel_size is {dcp_size}, which does not divide tensor_parallel_size {tp_size}"
        )
    if profile["max_model_len"] == 0:
        raise ValueError("max_model_len is 0; it must be a number of tokens, or -1 for the longest that fits")
    speculative = profile.get("speculative_config") or {}
    drafts = speculative.get("num_speculative_tokens", 0)
    if speculative and (not isinstance(drafts, int) or isinstance(drafts, bool) or drafts < 1):
        raise ValueError(
            f"speculative_config.num_speculative_tokens is {drafts!r}; it must be a number of tokens from 1 on,"
            " or speculative_config must be null"
        )
    capture = profile.get("max_cudagraph_capture_size")
    if drafts and capture is not None and capture <= drafts + 1:
        raise ValueError(
            f"max_cudagraph_capture_size is {capture}; with num_speculative_tokens {drafts} it must be greater than"
            f" {drafts + 1}, or the engine ends with 'No valid cudagraph sizes'"
        )
    _check_environment(profile["environment"])


def load_profile(name: str, shipped: Mapping[str, Value], overrides: Mapping[str, Value]) -> dict[str, Value]:
    """The profile *name* with *overrides*, complete and valid.

    *shipped* is the content of the profile's file without its name. Raises ValueError with one sentence that
    names the key, the value and the rule.
    """
    if not isinstance(overrides, dict):
        raise ValueError(f"serving_overrides is {overrides!r}; it must be a dict of profile keys")
    profile = merged(shipped, overrides)
    profile["name"] = name
    _check_keys(profile, KEYS, "")
    _check_rules(profile)
    return {**dict.fromkeys(_OWN_KEYS), **profile}


def world_size(profile: Mapping[str, Value]) -> int:
    """How many ranks, and so how many nodes of one GPU each, the profile needs."""
    return int(profile["tensor_parallel_size"]) * int(profile["pipeline_parallel_size"])
