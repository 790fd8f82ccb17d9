# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of a fit: every one is checked here before any arithmetic.

Private to this collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Callable

DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
CACHE_DTYPES = (
    "auto",
    "bfloat16",
    "float16",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_ds_mla",
    "nvfp4_ds_mla",
    "nvfp4",
    "int4_per_token_head",
    "int8_per_token_head",
    "fp8_per_token_head",
)
DRAFT_METHODS = ("mtp", "eagle", "eagle3", "ngram")
# Names by model that the engine takes for mtp.
_MTP_NAMES = ("deepseek_mtp", "glm4_moe_mtp", "glm4_moe_lite_mtp", "nemotron_h_mtp", "qwen3_next_mtp", "qwen3_5_mtp")
# No rig comes near it; a mistyped figure is not to keep the planner busy for hours.
_MOST_RANKS = 1024
_MOST_DRAFTS = 128
LAYOUTS = ("LBNHC", "BLHNC")


@dataclass(frozen=True)
class Request:
    """A fit that was asked for, with checked values. Sizes are bytes, lengths are tokens.

    Values that are given by rank are tuples, rank 0 first; an empty tuple means that the value is not known.
    """

    config: Mapping[str, Any]
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    dcp_kv_cache_interleave_size: int = 1
    dcp_comm_backend: str | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 1
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool | None = None
    enforce_eager: bool = False
    mamba_ssm_cache_dtype: str | None = None
    speculative_method: str | None = None
    speculative_tokens: int = 0
    replicated_draft: bool = False
    draft_config: Mapping[str, Any] | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    kv_cache_memory_bytes: tuple[int, ...] = ()
    kv_cache_auto: bool = False
    kv_cache_limit_bytes: tuple[int, ...] = ()
    engine: str = "0.32.0"
    device: str = "cuda"
    compute_capability: tuple[int, int] | None = None
    attention_backend: str | None = None
    kv_cache_layout: str = "LBNHC"
    num_gpu_blocks_override: int | None = None
    disable_hybrid_kv_cache_manager: bool | None = None
    disable_sliding_window: bool = False
    async_scheduling: bool | None = None
    weights_bytes: tuple[int, ...] = ()
    memory_available_bytes: tuple[int | None, ...] = ()
    memory_total_bytes: tuple[int, ...] = ()
    gpu_memory_utilization: float | None = None
    overhead_bytes: tuple[int, ...] = ()
    reserve_bytes: tuple[int, ...] = ()
    startup_bytes: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks of the engine: pipeline stages times tensor-parallel ranks."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def blackwell(self) -> bool:
        """Whether the GPU is known to be one of SM100 or SM103, whose kernels differ from all others'."""
        return self.compute_capability is not None and self.compute_capability[0] == 10


def _fail(name: str, value: object, rule: str) -> ValueError:
    return ValueError(f"{name}: {value!r} is not allowed; {rule}")


def _integer(name: str, value: object, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise _fail(name, value, f"it must be an integer of at least {minimum}")
    return int(value)


def _count(name: str, value: object) -> int:
    return _integer(name, value, 1)


def _parallel(name: str, value: object) -> int:
    size = _integer(name, value, 1)
    if size > _MOST_RANKS:
        raise _fail(name, value, f"it must be at most {_MOST_RANKS}")
    return size


def _optional_count(name: str, value: object) -> int | None:
    return None if value is None else _integer(name, value, 1)


def _context(name: str, value: object) -> int | None:
    if value is None or value == -1 and not isinstance(value, bool):
        return -1 if value is not None else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _fail(name, value, "it must be a number of tokens of at least 1, or -1 for the longest that fits")
    return int(value)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _fail(name, value, "it must be true or false")
    return value


def _optional_boolean(name: str, value: object) -> bool | None:
    return None if value is None else _boolean(name, value)


def _choice(choices: Sequence[str]) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if value not in choices:
            raise _fail(name, value, "it must be one of {}".format(", ".join(choices)))
        return str(value)

    return check


def _optional_choice(choices: Sequence[str]) -> Callable[[str, object], str | None]:
    check = _choice(choices)

    def check_given(name: str, value: object) -> str | None:
        return None if value is None else check(name, value)

    return check_given


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _fail(name, value, "it must be a string")
    return str(value)


def _optional_text(name: str, value: object) -> str | None:
    return None if value is None else _text(name, value).upper()


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _fail(name, value, "it must be a dictionary")
    return value


def _optional_mapping(name: str, value: object) -> Mapping[str, Any] | None:
    return None if value is None else _mapping(name, value)


def _capability(name: str, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.match(r"^(\d+)\.(\d+)$", str(value))
    if isinstance(value, bool) or match is None:
        raise _fail(name, value, "it must look like 9.0 or 12.1")
    return int(match.group(1)), int(match.group(2))


def _utilization(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise _fail(name, value, "it must be above 0 and at most 1")
    return float(value)


def _by_rank(name: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        if not value:
            raise _fail(name, value, "a list by rank must have one entry for each rank")
        return tuple(_integer(f"{name}[{rank}]", entry, 0) for rank, entry in enumerate(value))
    return (_integer(name, value, 0),)


def _readings(name: str, value: object) -> tuple[int | None, ...]:
    """Measured bytes by rank; None stands for a node whose memory is not to be compared."""
    if not isinstance(value, (list, tuple)):
        return _by_rank(name, value)
    known = _by_rank(name, [0 if entry is None else entry for entry in value])
    return tuple(None if given is None else entry for given, entry in zip(value, known))


def _names(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise _fail(name, value, "it must be a list of node names, rank 0 first")
    return tuple(_text(f"{name}[{rank}]", entry) for rank, entry in enumerate(value))


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "tensor_parallel_size": _parallel,
    "pipeline_parallel_size": _parallel,
    "decode_context_parallel_size": _parallel,
    "dcp_kv_cache_interleave_size": _optional_count,
    "cp_kv_cache_interleave_size": _optional_count,
    "dcp_comm_backend": _optional_choice(("ag_rs", "a2a")),
    "dtype": _choice(DTYPES),
    "kv_cache_dtype": _choice(CACHE_DTYPES),
    "block_size": _optional_count,
    "max_model_len": _context,
    "max_num_seqs": _count,
    "max_num_batched_tokens": _count,
    "enable_prefix_caching": _optional_boolean,
    "enforce_eager": _boolean,
    "mamba_ssm_cache_dtype": _optional_choice(("float32", "bfloat16", "float16")),
    "hf_overrides": _mapping,
    "engine": _text,
    "device": _choice(("cuda", "cpu")),
    "compute_capability": _capability,
    "attention_backend": _optional_text,
    "kv_cache_layout": _choice(LAYOUTS),
    "num_gpu_blocks_override": _optional_count,
    "disable_hybrid_kv_cache_manager": _optional_boolean,
    "disable_sliding_window": _boolean,
    "async_scheduling": _optional_boolean,
    "kv_cache_limit_bytes": _by_rank,
    "weights_bytes": _by_rank,
    "memory_available_bytes": _readings,
    "memory_total_bytes": _by_rank,
    "gpu_memory_utilization": _utilization,
    "overhead_bytes": _by_rank,
    "reserve_bytes": _by_rank,
    "startup_bytes": _by_rank,
    "nodes": _names,
    "draft_config": _optional_mapping,
}
# Options whose value is taken apart by a function of its own.
_COMPOSED = ("config", "speculative_config", "kv_cache_memory_bytes")
_BY_RANK = (
    "kv_cache_memory_bytes",
    "kv_cache_limit_bytes",
    "weights_bytes",
    "memory_available_bytes",
    "memory_total_bytes",
    "overhead_bytes",
    "reserve_bytes",
    "startup_bytes",
    "nodes",
)
# `null` means "the default" for these; for the others it is a wrong type.
_NULL_IS_DEFAULT = ("overhead_bytes", "reserve_bytes", "startup_bytes", "kv_cache_layout")

# Options of the engine that change the cache in a way that is not planned: better no answer than a wrong one.
_NOT_PLANNED = {"kv_cache_dtype_skip_layers": "layers with a cache dtype of their own are not planned"}

OPTION_NAMES = tuple(sorted(tuple(_CHECKS) + _COMPOSED))


def _speculation(value: object) -> dict[str, Any]:
    """speculative_config as fields of Request; only what changes the cache is looked at."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _fail("speculative_config", value, "it must be a dictionary")
    if not value:
        return {}
    method = value.get("method")
    method = "mtp" if method in _MTP_NAMES else method
    if method not in DRAFT_METHODS:
        raise _fail("speculative_config.method", method, "it must be one of {}".format(", ".join(DRAFT_METHODS)))
    tokens = _count("speculative_config.num_speculative_tokens", value.get("num_speculative_tokens"))
    if tokens > _MOST_DRAFTS:
        raise _fail("speculative_config.num_speculative_tokens", tokens, f"it must be at most {_MOST_DRAFTS}")
    replicated = value.get("replicated_draft", False)
    return {
        "speculative_method": method,
        "speculative_tokens": tokens,
        "replicated_draft": _boolean("speculative_config.replicated_draft", replicated),
    }


# Two names of one thing: the older one, and the one that the engine heeds since 0.30.
_INTERLEAVES = ("dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size")


def _interleave(old: int | None, new: int | None) -> dict[str, Any]:
    """The DCP interleave as a field of Request."""
    if old is not None and new is not None and old != new:
        raise _fail(_INTERLEAVES[1], new, f"{_INTERLEAVES[0]} is {old}, and both are names of one thing")
    given = new if old is None else old
    return {} if given is None else {_INTERLEAVES[0]: given}


def _cache_bytes(value: object) -> dict[str, Any]:
    if value == "auto":
        return {"kv_cache_auto": True}
    if isinstance(value, str):
        raise _fail("kv_cache_memory_bytes", value, "it must be bytes, a list of bytes by rank, or auto")
    return {"kv_cache_memory_bytes": _by_rank("kv_cache_memory_bytes", value)}


def parse_request(options: Mapping[str, Any]) -> Request:
    """The checked request; raises ValueError with the option, its value and the rule.

    options: the keys that DESIGN and the module's documentation name, with `config` as a dict.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"options: a dictionary is needed, not {type(options).__name__}")
    for name, why in _NOT_PLANNED.items():
        if options.get(name):
            raise _fail(name, options[name], why)
    unknown = sorted(str(key) for key in options if key not in OPTION_NAMES and key not in _NOT_PLANNED)
    if unknown:
        raise ValueError("{}: unknown option; known are {}".format(unknown[0], ", ".join(OPTION_NAMES)))
    config = options.get("config")
    if not isinstance(config, Mapping) or not config:
        raise ValueError(f"config: the model's config.json as a dictionary is needed, not {config!r}")
    values: dict[str, Any] = {"config": config}
    for name, check in _CHECKS.items():
        if name in options and not (options[name] is None and name in _NULL_IS_DEFAULT):
            values[name] = check(name, options[name])
    values.update(_interleave(values.pop(_INTERLEAVES[0], None), values.pop(_INTERLEAVES[1], None)))
    values.update(_speculation(options.get("speculative_config")))
    values.update(_cache_bytes(options.get("kv_cache_memory_bytes")))
    request = Request(**values)
    if request.kv_cache_limit_bytes and not (request.kv_cache_auto and request.max_model_len == -1):
        raise ValueError(
            f"kv_cache_limit_bytes: {options['kv_cache_limit_bytes']!r} is not allowed; it bounds a budget that is "
            "looked for, which needs kv_cache_memory_bytes auto and max_model_len -1"
        )
    return _spread(request)


def _spread(request: Request) -> Request:
    """One value for all ranks becomes one value a rank; a list must have one entry for each rank."""
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    for name in _BY_RANK:
        given = values[name]
        if len(given) == 1 and name != "nodes":
            values[name] = given * request.ranks
        elif given and len(given) != request.ranks:
            raise ValueError(
                f"{name}: {len(given)} entries for {request.ranks} ranks (tensor_parallel_size "
                f"{request.tensor_parallel_size} x pipeline_parallel_size {request.pipeline_parallel_size}); "
                "one for each is needed"
            )
    if not values["hf_overrides"]:
        values["hf_overrides"] = {}
    return Request(**values)
