# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a profile and a KV plan to the engine's command line, and from a command line to systemd's ExecStart=.

Private to the collection. A profile carries vLLM's own option names, so the way to a flag is mechanical; what
this module adds is that nothing unknown, secret or contradictory ever reaches the engine.
"""

from __future__ import annotations

import difflib
import json
import typing as t
from dataclasses import dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import find_dialect

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Value = t.Any

# Keys of a profile that describe the rig and not the engine.
RIG_KEYS = frozenset(
    {
        "bench",
        "description",
        "environment",
        "expect",
        "fit",
        "model",
        "mp",
        "name",
        "ray",
        "requires",
        "runtime",
        "timeouts",
    }
)
# Options that would show a secret to everybody who may run ps. They belong into secrets.env.
SECRET_KEYS = frozenset({"api_key", "hf_token"})

# The options of vLLM 0.32's API server that a profile may carry, by the kind of their value. Kind `bool` has a
# positive and a negative flag, `flag` only the positive one.
OPTIONS: Mapping[str, str] = {
    "additional_config": "json",
    "all2all_backend": "str",
    "async_scheduling": "bool",
    "attention_backend": "str",
    "attention_config": "json",
    "block_size": "int",
    "chat_template": "str",
    "chat_template_content_format": "str",
    "code_revision": "str",
    "compilation_config": "json",
    "config_format": "str",
    "cp_kv_cache_interleave_size": "int",
    "cpu_distributed_timeout_seconds": "int",
    "cpu_offload_gb": "float",
    "cudagraph_capture_sizes": "list",
    "cudagraph_metrics": "bool",
    "data_parallel_size": "int",
    "dcp_comm_backend": "str",
    "dcp_kv_cache_interleave_size": "int",
    "decode_context_parallel_size": "int",
    "default_chat_template_kwargs": "json",
    "disable_cascade_attn": "bool",
    "disable_custom_all_reduce": "bool",
    "disable_fastapi_docs": "bool",
    "disable_hybrid_kv_cache_manager": "bool",
    "disable_log_stats": "flag",
    "disable_sliding_window": "bool",
    "disable_uvicorn_access_log": "bool",
    "distributed_executor_backend": "str",
    "distributed_timeout_seconds": "int",
    "download_dir": "str",
    "dtype": "str",
    "enable_auto_tool_choice": "bool",
    "enable_chunked_prefill": "bool",
    "enable_eplb": "bool",
    "enable_expert_parallel": "bool",
    "enable_log_outputs": "bool",
    "enable_log_requests": "bool",
    "enable_prefix_caching": "bool",
    "enable_prompt_tokens_details": "bool",
    "enable_sleep_mode": "bool",
    "enforce_eager": "bool",
    "exclude_tools_when_tool_choice_none": "bool",
    "generation_config": "str",
    "gpu_memory_utilization": "float",
    "hf_config_path": "str",
    "hf_overrides": "json",
    "host": "str",
    "ignore_patterns": "list",
    "kernel_config": "json",
    "kv_cache_dtype": "str",
    "kv_cache_dtype_skip_layers": "list",
    "kv_cache_memory_bytes": "int",
    "kv_cache_metrics": "bool",
    "language_model_only": "bool",
    "limit_mm_per_prompt": "json",
    "linear_backend": "str",
    "load_format": "str",
    "logprobs_mode": "str",
    "long_prefill_token_threshold": "int",
    "max_cudagraph_capture_size": "int",
    "max_log_len": "int",
    "max_logprobs": "int",
    "max_model_len": "int",
    "max_num_batched_tokens": "int",
    "max_num_scheduled_tokens": "int",
    "max_num_seqs": "int",
    "max_parallel_loading_workers": "int",
    "model_impl": "str",
    "model_loader_extra_config": "json",
    "moe_backend": "str",
    "num_gpu_blocks_override": "int",
    "optimization_level": "str",
    "override_generation_config": "json",
    "performance_mode": "str",
    "pipeline_parallel_size": "int",
    "port": "int",
    "prefix_caching_hash_algo": "str",
    "quantization": "str",
    "quantization_config": "json",
    "reasoning_parser": "str",
    "response_role": "str",
    "revision": "str",
    "root_path": "str",
    "safetensors_load_strategy": "str",
    "scheduler_reserve_full_isl": "bool",
    "scheduling_policy": "str",
    "seed": "int",
    "served_model_name": "str",
    "shutdown_timeout": "int",
    "skip_tokenizer_init": "bool",
    "speculative_config": "json",
    "stream_interval": "int",
    "structured_outputs_config": "json",
    "tensor_parallel_size": "int",
    "tokenizer": "str",
    "tokenizer_mode": "str",
    "tokenizer_revision": "str",
    "tool_call_parser": "str",
    "trust_remote_code": "bool",
    "uvicorn_log_level": "str",
    "worker_cls": "str",
    "worker_extension_cls": "str",
}

_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "flag": (bool,),
    "float": (float, int),
    "int": (int,),
    "json": (dict, list),
    "list": (list, tuple),
    "str": (str,),
}


def nearest(name: str, known: t.Iterable[str]) -> str:
    """A hint that names the known word nearest to *name*, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""


def canonical_json(value: Value) -> str:
    """One text for one value: keys sorted, no blanks, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _pair(flag: str, text: str) -> list[str]:
    # A value that looks like a flag would be taken for one.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _option(name: str, value: Value) -> list[str]:
    """The words of one option; *name* is known."""
    kind = OPTIONS[name]
    wanted = _TYPES[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ValueError(f"engine option '{name}' is {value!r} ({type(value).__name__}); it must be of type {kind}")
    flag = "--" + name.replace("_", "-")
    if kind == "flag":
        return [flag] if value else []
    if kind == "bool":
        return [flag] if value else ["--no-" + flag[2:]]
    if kind == "json":
        return _pair(flag, canonical_json(value))
    if kind == "list":
        words = [str(item) for item in t.cast("t.Sequence[Value]", value)]
        return [flag, *words] if words else []
    text = str(value)
    if "\n" in text or "\0" in text:
        raise ValueError(f"engine option '{name}' is {value!r}; it must be one line")
    return _pair(flag, text)


def _kv_bytes(profile: Mapping[str, Value], plan: Mapping[str, Value]) -> Value:
    """The bytes of KV cache that every rank gets: the plan decides, the profile is what it was asked for."""
    planned = plan.get("kv_cache_memory_bytes")
    if isinstance(planned, (list, tuple)):
        if len(set(planned)) != 1:
            raise ValueError(
                f"the plan's kv_cache_memory_bytes is {list(planned)!r}; the engine takes one number for all ranks"
            )
        return planned[0]
    return profile.get("kv_cache_memory_bytes") if planned is None else planned


# The names of the tokens that follow each other on one rank of DCP, by the engines that heed them.
_OLD_INTERLEAVE, _INTERLEAVE = "dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size"


def _interleave(profile: Mapping[str, Value]) -> dict[str, Value]:
    """The DCP interleave under the name that the profile's engine heeds.

    Up to 0.28 the older name wins over the newer one, and FlashInfer reads no other. From 0.30 on the older one is
    still parsed but, without a KV connector, does nothing: the engine would deal out single tokens, whatever was
    planned.
    """
    given = {name: profile[name] for name in (_OLD_INTERLEAVE, _INTERLEAVE) if profile.get(name) is not None}
    if not given:
        return {}
    if len(set(given.values())) > 1:
        raise ValueError(
            f"'{_INTERLEAVE}' is {given[_INTERLEAVE]!r} and '{_OLD_INTERLEAVE}' is {given[_OLD_INTERLEAVE]!r}; they are"
            " two names of one thing, leave one of them out"
        )
    engine = (profile.get("fit") or {}).get("engine")
    if not isinstance(engine, str):
        raise ValueError(
            f"profile key 'fit.engine' is {engine!r}; it must name the engine's version, on which the name of"
            f" '{next(iter(given))}' depends"
        )
    name = _INTERLEAVE if find_dialect(engine).version >= (0, 30) else _OLD_INTERLEAVE
    return {name: next(iter(given.values()))}


def vllm_options(profile: Mapping[str, Value], plan: Mapping[str, Value]) -> list[str]:
    """The options of the engine for *profile* with the KV cache of *plan*, sorted by name after the model.

    Raises ValueError, naming the key and the value, for a key that is no option of the engine, for a secret,
    for a value of the wrong type, for a profile without a model and for a DCP interleave without the engine's version.
    """
    model = profile.get("model") or {}
    path = model.get("path")
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError(f"profile key 'model.path' is {path!r}; it must be the absolute path of the model's folder")
    for name in profile:
        if name in SECRET_KEYS:
            raise ValueError(f"'{name}' is a secret and would be readable in the list of processes; leave it out here")
        if name not in OPTIONS and name not in RIG_KEYS:
            raise ValueError(f"'{name}' is no option of the engine{nearest(name, OPTIONS)}")
    values = {name: value for name, value in profile.items() if name in OPTIONS}
    values.update({_OLD_INTERLEAVE: None, _INTERLEAVE: None, **_interleave(profile)})
    values["kv_cache_memory_bytes"] = _kv_bytes(profile, plan)
    if values.get("max_model_len") == -1 and plan.get("planned_model_len"):
        # The engine would look for the longest of one request; the plan has looked for that of max_num_seqs.
        values["max_model_len"] = plan["planned_model_len"]
    words = ["--model", path]
    for name in sorted(values):
        if values[name] is not None:
            words += _option(name, values[name])
    return words


# Runs `vllm serve --headless`. Once its rank has started, such a process only waits for the rank to end, and holds 460
# MiB meanwhile: so it becomes a watcher of 3 MiB with the same process id. The rank ends when the pipe closes that says
# that its parent lives, so that pipe stays open. A vLLM that is built otherwise inside is run as it is.
_HEADLESS = '''\
import os, sys
from vllm.entrypoints.cli.main import main
try:
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    monitor = MultiprocExecutor.start_worker_monitor
except (AttributeError, ImportError) as error:
    print("this vLLM cannot be made slimmer:", error, flush=True)
    sys.exit(main())
watch = """
import os, sys
pid, status = os.waitpid(int(sys.argv[1]), 0)
sys.exit(f"the rank ended with {os.waitstatus_to_exitcode(status)}")
"""
def become_watcher(executor, inline=False):
    try:
        (worker,) = executor.workers
        os.set_inheritable(worker.death_writer.fileno(), True)
        pid = str(worker.proc.pid)
    except (AttributeError, ValueError) as error:
        print("this vLLM cannot be made slimmer:", error, flush=True)
        return monitor(executor, inline)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", watch, pid])
MultiprocExecutor.start_worker_monitor = become_watcher
sys.exit(main())
'''


@dataclass(frozen=True)
class Place:
    """The place of one node among those of vLLM's own multi-node executor (``mp``), which runs one rank on each.

    The ranks meet at *address* (of the head, rank 0) and *port*.
    """

    rank: int
    ranks: int
    address: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"the rank is {self.rank}; of {self.ranks} nodes it must be 0 to {self.ranks - 1}")

    @property
    def options(self) -> list[str]:
        """What differs from node to node."""
        words = ["--nnodes", str(self.ranks), "--node-rank", str(self.rank)]
        words += ["--master-addr", self.address, "--master-port", str(self.port)]
        return words if self.rank == 0 else [*words, "--headless"]


def vllm_argv(
    profile: Mapping[str, Value],
    plan: Mapping[str, Value] | None = None,
    python: str = "/opt/sparkrig/current/bin/python",
    place: Place | None = None,
) -> list[str]:
    """The whole command of the API server; with a *place* other than the first, of that node's rank."""
    options = vllm_options(profile, plan or {})
    if place is None:
        return [python, "-m", "vllm.entrypoints.openai.api_server", *options]
    parallel = profile.get("tensor_parallel_size", 1) * profile.get("pipeline_parallel_size", 1)
    if parallel != place.ranks:
        raise ValueError(
            f"tensor_parallel_size x pipeline_parallel_size is {parallel}, and there are {place.ranks} nodes; with"
            " distributed_executor_backend mp each node has one rank, so the two must be the same"
        )
    if place.rank == 0:
        return [python, "-m", "vllm.entrypoints.openai.api_server", *options, *place.options]
    # Only `vllm serve` knows --headless, and it wants the model before the options.
    return [python, "-c", _HEADLESS, "serve", *options[1:], *place.options]


def systemd_word(word: str) -> str:
    """*word* so that systemd passes it on unchanged in ExecStart=: no specifier, no variable, no quote is left."""
    if "\0" in word:
        raise ValueError(f"{word!r} holds a NUL byte; no process can get it as an argument")
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    text = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return f'"{text}"'


def systemd_command(argv: Iterable[str]) -> str:
    """The value of ExecStart= for *argv*, one word a line, so that a diff shows what changed."""
    words = [str(word) for word in argv]
    if not words or not words[0].startswith("/"):
        raise ValueError(f"the command is {words!r}; its first word must be an absolute path")
    return " \\\n  ".join(systemd_word(word) for word in words)
