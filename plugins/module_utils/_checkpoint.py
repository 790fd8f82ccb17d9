# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a checkpoint holds, what is wrong with it, and what each rank of an engine will load of it.

Private to the collection. Everything is known from config.json, the index and the headers of the safetensors
files; no tensor is read. A survey takes the headers one by one and keeps sums only, so that a checkpoint of
hundreds of gigabytes takes a second and little memory.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import typing as t
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import merge_overrides, owns_indexer
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import list_folder, stat_of, unsafe_files
from ansible_collections.sparkrig.serving.plugins.module_utils._safetensors import (
    DTYPE_BITS,
    Header,
    Tensor,
    read_header,
)

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_SUFFIX = ".safetensors"

PARTS = (
    "attention",
    "indexer",
    "routed_experts",
    "shared_experts",
    "router",
    "dense_mlp",
    "embeddings",
    "head",
    "norms",
    "mtp",
    "other",
)

# vLLM pads the vocabulary to a multiple of this before it splits it.
_VOCABULARY_PADDING = 64
_EXPERT_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")
_FLOATS = frozenset(("BF16", "F16", "F32"))
_ENGINE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}
# At most this many names in one sentence.
_NAMES_SHOWN = 3

# The decoder's layers, wherever a multimodal wrapper has put them: layer, path to the experts, and the rest.
_LAYER = re.compile(
    r"(?:model\.|language_model\.|model\.language_model\.|language_model\.model\.)?"
    r"layers\.(\d+)\.(?:([a-z_.]*experts\.)(\d+)\.)?(.+)"
)

# Linear layers by how vLLM splits them over the ranks: output rows, input columns, or heads of keys and values.
_BY_ROW = frozenset(
    ("q_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj", "gate_up_proj", "w1", "w3")
    + ("in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "conv1d")
)
_BY_COLUMN = frozenset(("o_proj", "down_proj", "w2", "out_proj"))
_BY_KV_HEAD = frozenset(("k_proj", "v_proj"))
_VOCABULARY = frozenset(("embed_tokens", "lm_head", "head"))
# GPTQ and AWQ keep [inputs, outputs] where everybody else keeps [outputs, inputs].
_TRANSPOSED = frozenset(("qweight", "qzeros", "scales"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: t.Iterable[object]) -> str:
    """A few of the names, and how many more there are."""
    every = [str(name) for name in names]
    more = len(every) - _NAMES_SHOWN
    return ", ".join(every[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def parse_object(text: bytes, file: str) -> dict[str, t.Any]:
    """The JSON object in *text*, the content of *file*."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a JSON {type(value).__name__}, not an object; copy it again")
    return value


def _is_size(value: object) -> bool:
    """Whether *value* is a number of bytes; some writers make a float of it."""
    whole = (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )
    return whole and t.cast("float", value) >= 0


def parse_index(text: bytes, file: str) -> dict[str, str]:
    """Tensor to shard, as the index in *text* has it. No shard may lie outside of the folder."""
    whole = parse_object(text, file)
    weight_map, metadata = whole.get("weight_map"), whole.get("metadata")
    if isinstance(metadata, dict) and not _is_size(metadata.get("total_size", 0)):
        raise ValueError(f"{file} has the total_size {metadata['total_size']!r}, which is no size; copy it again")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{file} has no weight_map, so nobody knows which shard holds which tensor; copy it again")
    for shard in set(map(str, weight_map.values())):
        if shard.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", shard) or not shard.endswith(WEIGHTS_SUFFIX):
            raise ValueError(f"{file} names the shard {shard!r}; a shard is a {WEIGHTS_SUFFIX} file in the same folder")
    return t.cast("dict[str, str]", weight_map)


@dataclass(frozen=True)
class Layout:
    """How an engine will spread the checkpoint over its ranks.

    ``mtp`` says that it drafts with the MTP layers that the config promises; ``absorbed_copies`` that it keeps
    kv_b_proj a second time, transposed for decoding, even when it is not quantised; ``enable_expert_parallel`` that
    each rank keeps some of the experts whole, not a part of all. ``hf_overrides`` is laid over the config first.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    mtp: bool = True
    dtype: str = "auto"
    absorbed_copies: bool = True
    enable_expert_parallel: bool = False
    hf_overrides: t.Mapping[str, t.Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.dtype != "auto" and self.dtype not in _ENGINE_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}, it must be auto or one of {', '.join(sorted(_ENGINE_BYTES))}")


# The options of the modules; doc_fragments/_checkpoint_layout.py describes them.
LAYOUT_ARGUMENTS: t.Mapping[str, t.Mapping[str, t.Any]] = {
    "tensor_parallel_size": {"type": "int", "default": 1},
    "pipeline_parallel_size": {"type": "int", "default": 1},
    "dtype": {"type": "str", "default": "auto"},
    "hf_overrides": {"type": "dict", "default": {}},
    "mtp": {"type": "bool", "default": True},
    "absorbed_copies": {"type": "bool", "default": True},
    "enable_expert_parallel": {"type": "bool", "default": False},
}


# And how strictly the files are looked at.
CHECK_ARGUMENTS: t.Mapping[str, t.Mapping[str, t.Any]] = {
    "allow_files": {"type": "list", "elements": "str", "default": []},
}


def layout_of(parameters: t.Mapping[str, t.Any]) -> Layout:
    """The layout that a module's parameters describe."""
    return Layout(**{name: parameters[name] for name in LAYOUT_ARGUMENTS})


def stages(layers: int, count: int) -> tuple[int, ...]:
    """How many layers each pipeline stage gets: vLLM gives what is left over to the last but one, and so on."""
    if count > layers:
        raise ValueError(f"pipeline_parallel_size is {count}, the model has only {_count(layers, 'layer')}")
    sizes = [layers // count] * count
    for index in range(layers % count):
        sizes[-2 - index] += 1
    return tuple(sizes)


@dataclass(frozen=True)
class Report:
    """What a survey found. Sizes in bytes; ``weights_bytes`` is by rank, in the order of vLLM's ranks.

    ``missing`` are the shards that the index names and nobody has, ``damaged`` is what is wrong with a file, by name.
    ``digests`` is by file: of the header for weights, of the whole file for config and index; ``digest`` is of
    all of them and of the files' sizes.
    """

    config: t.Mapping[str, t.Any]
    files: t.Mapping[str, int]
    missing: t.Sequence[str]
    damaged: t.Mapping[str, str]
    tensors: int
    total_bytes: int
    bytes_by_dtype: t.Mapping[str, int]
    bytes_by_part: t.Mapping[str, int]
    indexer_layers: t.Sequence[int]
    mtp: t.Mapping[str, t.Any]
    quantization: str | None
    weights_bytes: t.Sequence[int]
    digests: t.Mapping[str, str]
    digest: str
    problems: t.Sequence[str]

    def as_dict(self) -> dict[str, t.Any]:
        """The same as plain lists and dicts, for a module's result."""
        return {
            name: dict(value) if isinstance(value, t.Mapping) else list(value) if isinstance(value, tuple) else value
            for name, value in self.__dict__.items()
        }


def _text_config(config: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any]:
    """The part of the config that describes the decoder."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _number(config: t.Mapping[str, t.Any], key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"config.json: {key} is {value!r}, it must be a whole number")
    return value


def promised_mtp_layers(config: t.Mapping[str, t.Any]) -> int:
    """How many MTP layers a config.json says that the checkpoint has behind its last layer."""
    return _number(_text_config(config), "num_nextn_predict_layers", 0)


def _part(name: str) -> str:
    """The part of a model that a tensor belongs to; *name* is what follows `layers.N.`, or the whole name."""
    for part, marks in (
        ("indexer", ("indexer.",)),
        ("attention", ("self_attn.", "linear_attn.", "attention.")),
        ("shared_experts", ("shared_expert",)),
        ("routed_experts", (".experts.",)),
        ("router", ("mlp.gate.", "router.", "block_sparse_moe.gate.")),
        ("dense_mlp", ("mlp.", "feed_forward.")),
        ("embeddings", ("embed_tokens.",)),
        ("head", ("lm_head.", "shared_head.head.")),
        ("norms", ("norm",)),
    ):
        if any(mark in name for mark in marks):
            return part
    return "other"


_QUANTIZED = {("U8", "F8_E4M3"): "nvfp4", ("U8", "F8_E8M0"): "mxfp4", ("U8", "U8"): "mxfp4"}


def _precision(kinds: t.Mapping[tuple[str, str], int]) -> str | None:
    """In what most bytes are kept; *kinds* is bytes by (last part of the name, dtype)."""
    weights = Counter(
        {dtype: size for (name, dtype), size in kinds.items() if name in ("weight", "weight_packed", "qweight")}
    )
    if not weights:
        return None
    dtype = weights.most_common(1)[0][0]
    scales = [scale for name, scale in kinds if name in ("weight_scale", "weight_scale_inv")]
    for scale in scales:
        if (dtype, scale) in _QUANTIZED:
            return _QUANTIZED[dtype, scale]
    return {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "I32": "int4", "I8": "int8"}.get(dtype, dtype.lower())


class Survey:
    """Takes a checkpoint's headers, file by file, and sums them up."""

    def __init__(
        self, config: t.Mapping[str, t.Any], weight_map: t.Mapping[str, str] | None, layout: Layout = Layout()
    ) -> None:
        self._config = config
        self._layout = layout
        text = self._text = merge_overrides(_text_config(config), layout.hf_overrides)
        self._layers = _number(text, "num_hidden_layers", 0)
        self._promised = promised_mtp_layers(text)
        self._heads = _number(text, "num_attention_heads", 1)
        self._kv_heads = _number(text, "num_key_value_heads", self._heads)
        self._engine_bytes = _ENGINE_BYTES.get(layout.dtype, 2)
        sizes = stages(self._layers, layout.pipeline_parallel_size)
        self._stage = [stage for stage, size in enumerate(sizes) for _layer in range(size)]
        self._stage_bytes = [0] * len(sizes)
        # With expert parallelism ranks of one stage differ: what each keeps of the experts, by stage and rank.
        self._experts = next((_number(text, key, 0) for key in _EXPERT_COUNTS if text.get(key)), 0)
        self._expert_bytes = [[0] * layout.tensor_parallel_size for _size in sizes]
        self._indexed = weight_map or {}
        self._shards: dict[str, set[str]] | None = None
        if weight_map is not None:
            self._shards = {}
            for name, shard in weight_map.items():
                self._shards.setdefault(shard, set()).add(name)
        self._owner: dict[str, str] = {}
        self._files: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._dtypes: Counter[str] = Counter()
        self._parts: Counter[str] = Counter()
        self._mtp_kinds: Counter[tuple[str, str]] = Counter()
        self._seen_layers: set[int] = set()
        self._indexers: set[int] = set()
        self._rules: dict[tuple[t.Any, ...], tuple[str, int]] = {}
        self._embedding_bytes = 0
        self._unpacks = False
        self._problems: list[str] = []
        self._missing: list[str] = []
        self._damaged: dict[str, str] = {}

    def problem(self, sentence: str) -> None:
        """Note what is wrong, once."""
        if sentence not in self._problems:
            self._problems.append(sentence)

    def note_missing(self, present: t.Container[str], where: str) -> None:
        """Note the shards that the index names and that are not *present*."""
        self._missing = sorted(shard for shard in self.shards if shard not in present)
        for shard in self._missing:
            self.problem(f"{shard} is missing in {where}, and {INDEX_FILE} names it; copy it there")

    def note_damaged(self, file: str, sentence: str) -> None:
        """Note a file whose header could not be taken."""
        self._damaged[file] = sentence
        self.problem(sentence)

    @property
    def shards(self) -> t.Iterable[str]:
        """The shards that the index names."""
        return self._shards or ()

    def is_used(self, file: str) -> bool:
        """Whether the index names *file*; without an index every file counts."""
        return self._shards is None or file in self._shards

    def add(self, file: str, header: Header) -> None:
        """Take the header of one file."""
        self._files[file] = header.file_bytes
        self._digests[file] = header.sha256
        self._check_against_index(file, header.tensors)
        for name, tensor in header.tensors.items():
            self._take(file, name, tensor)

    def _check_against_index(self, file: str, tensors: t.Mapping[str, Tensor]) -> None:
        if self._shards is None:
            return
        named = self._shards.get(file, set())
        absent = sorted(named - tensors.keys())
        if absent:
            self.problem(f"{file} lacks {_count(len(absent), 'tensor')} that the index says it holds: {_some(absent)}")
        extra = sorted(name for name in tensors.keys() - named if name not in self._indexed)
        if extra:
            self.problem(f"{file} holds {_count(len(extra), 'tensor')} that the index does not name: {_some(extra)}")

    def _take(self, file: str, name: str, tensor: Tensor) -> None:
        other = self._owner.setdefault(name, file)
        if other != file:
            self.problem(f"{name} is in two files, {other} and {file}: which one is loaded depends on their order")
            return
        size = tensor.end - tensor.start
        self._dtypes[tensor.dtype] += size
        match = _LAYER.match(name)
        if match is None:
            self._take_outside(name, tensor)
            return
        layer = int(match[1])
        # All experts of all layers share a few rules.
        key = (match[2], match[4], tensor.dtype, tensor.shape)
        rule = self._rules.get(key)
        if rule is None:
            rest = f"{match[2] or ''}{match[4]}"
            rule = self._rules[key] = (_part(rest), self._rank_bytes(rest, tensor))
        part, rank_bytes = rule
        self._seen_layers.add(layer)
        if part == "indexer":
            # What vLLM builds counts, see finish().
            self._indexers.add(layer)
            rank_bytes = 0
        elif part == "routed_experts" and self._layout.enable_expert_parallel:
            if layer < self._layers or layer in self._drafting_layers():
                self._give_to_owner(self._stage[layer] if layer < self._layers else -1, match[3], rank_bytes)
            rank_bytes = 0
        if layer < self._layers:
            self._parts[part] += size
            self._stage_bytes[self._stage[layer]] += rank_bytes
            return
        self._parts["mtp"] += size
        self._mtp_kinds[name.rpartition(".")[2], tensor.dtype] += size
        # The main model's embedding and head serve the draft too; its own copies are given back.
        if layer in self._drafting_layers() and part not in ("embeddings", "head"):
            self._stage_bytes[-1] += rank_bytes

    def _give_to_owner(self, stage: int, expert: str | None, size: int) -> None:
        """A whole expert to the rank that keeps it; a tensor of all experts in parts to all of them.

        The first ranks keep one more each when the experts cannot be dealt out evenly.
        """
        ranks = self._layout.tensor_parallel_size
        each, more = divmod(self._experts, ranks)
        if each == 0:
            self.problem(f"{ranks} ranks cannot share {_count(self._experts, 'expert')}; drop enable_expert_parallel")
        elif expert is None:
            for rank in range(ranks):
                self._expert_bytes[stage][rank] += size * (each + (rank < more)) // self._experts
        else:
            number = int(expert)
            first = more * (each + 1)
            rank = number // (each + 1) if number < first else more + (number - first) // each
            self._expert_bytes[stage][min(rank, ranks - 1)] += size

    def _take_outside(self, name: str, tensor: Tensor) -> None:
        """A tensor of no layer: the embedding on the first stage, head and last norm on the last."""
        part, rank_bytes = _part(name), self._rank_bytes(name, tensor)
        self._parts[part] += tensor.size_bytes
        self._stage_bytes[-1 if part in ("head", "norms") else 0] += rank_bytes
        if part == "embeddings":
            self._embedding_bytes += rank_bytes

    def _add_embedding_of_last_stage(self) -> None:
        """Without a head in the files the embedding is the head, and no stage can borrow that of the first.

        A head in the files counts even when the config ties it: vLLM loads it, and gives it back only when it turns
        out to be equal.
        """
        tied = self._text.get("tie_word_embeddings") and not self._parts["head"]
        if len(self._stage_bytes) > 1 and (tied or self._drafting_layers()):
            self._stage_bytes[-1] += self._embedding_bytes

    def _rank_bytes(self, name: str, tensor: Tensor) -> int:
        """What one rank of a stage keeps of a tensor."""
        module, _dot, parameter = name.rpartition(".")
        module = module.rpartition(".")[2]
        if module == "kv_b_proj" and parameter.endswith("weight") and tensor.dtype not in _FLOATS:
            self._unpacks = True
        shape = list(tensor.shape)
        bits = DTYPE_BITS[tensor.dtype]
        if parameter in ("weight", "bias") and tensor.dtype in _FLOATS:
            bits = 8 * (4 if "indexer.k_norm." in name else self._engine_bytes)
        ranks = self._layout.tensor_parallel_size
        if self._layout.enable_expert_parallel and _part(name) == "routed_experts":
            ranks = 1
        if "indexer." in name or not shape:
            axis = None
        elif module in _VOCABULARY:
            axis = 0
            shape[0] += -shape[0] % _VOCABULARY_PADDING
        elif len(shape) == 3 and "experts." in name:
            axis = 2 if module == "gate_up_proj" or parameter.startswith("gate_up_proj") else 1
        elif module in _BY_KV_HEAD:
            axis = 0
            if self._kv_heads % ranks != 0 and ranks % max(self._kv_heads, 1) != 0:
                self.problem(f"{self._kv_heads} key-value heads can be neither split over nor shared by {ranks} ranks")
            # Fewer heads than ranks: each rank keeps a whole one.
            ranks = min(ranks, max(self._kv_heads, 1))
        elif module in _BY_ROW:
            axis = 0
        elif module in _BY_COLUMN:
            axis = 1 if len(shape) > 1 else None
        else:
            axis = None
        if axis is not None and parameter in _TRANSPOSED and len(shape) == 2:
            axis = 1 - axis
        # A scale for all of it is on every rank.
        if axis is not None and shape[axis] > 1:
            if parameter == "weight" and shape[axis] % ranks:
                self.problem(f"{name} is {tensor.shape[axis]} wide, which {ranks} ranks cannot split evenly")
            shape[axis] = -(-shape[axis] // ranks)
        count = 1
        for size in shape:
            count *= size
        return count * bits // 8

    def _built_indexers(self) -> list[int]:
        """The layers on which vLLM builds an indexer, whether or not the files have one for it."""
        if "index_topk" not in self._text:
            return []
        every = self._text.get("use_index_cache") is False
        main = [layer for layer in range(self._layers) if every or owns_indexer(self._text, layer)]
        return [*main, *self._drafting_layers()]

    def _drafting_layers(self) -> range:
        return range(self._layers, self._layers + (self._promised if self._layout.mtp else 0))

    def _add_indexers(self) -> None:
        built = self._built_indexers()
        if not built:
            return
        hidden, rank = _number(self._text, "hidden_size", 0), _number(self._text, "q_lora_rank", 0)
        heads, width = _number(self._text, "index_n_heads", 0), _number(self._text, "index_head_dim", 0)
        # wq_b, wk and weights_proj in the engine's type; the norm's weight and bias always in F32.
        each = self._engine_bytes * (rank * heads * width + hidden * (width + heads)) + 4 * 2 * width
        for layer in built:
            self._stage_bytes[self._stage[layer] if layer < self._layers else -1] += each
        absent = [layer for layer in built if layer not in self._indexers and layer < self._layers]
        if absent:
            self.problem(
                f"the config gives an indexer to layers that have none in the files: {_some(absent)}; correct "
                "index_topk_freq, index_topk_pattern or the hf_overrides"
            )

    def _add_absorbed_copies(self) -> None:
        latent = _number(self._text, "kv_lora_rank", 0)
        if not latent or not (self._layout.absorbed_copies or self._unpacks):
            return
        width = _number(self._text, "qk_nope_head_dim", 0) + _number(self._text, "v_head_dim", 0)
        each = self._heads // self._layout.tensor_parallel_size * latent * width * self._engine_bytes
        for stage in self._stage:
            self._stage_bytes[stage] += each
        self._stage_bytes[-1] += each * len(self._drafting_layers())

    def _check_layers(self) -> None:
        gone = [layer for layer in range(self._layers) if layer not in self._seen_layers]
        if gone:
            self.problem(
                f"config.json promises {_count(self._layers, 'layer')}, but no file holds a tensor of layer "
                f"{_some(gone)}; copy the missing shards there"
            )
        lost = [layer for layer in self._drafting_layers() if layer not in self._seen_layers]
        if lost:
            self.problem(
                f"config.json promises {_count(self._promised, 'MTP layer')} (num_nextn_predict_layers), but no file "
                f"holds model.layers.{lost[0]}.*: add the overlay that does, or serve without drafts"
            )

    @property
    def total_bytes(self) -> int:
        """The data of all tensors so far."""
        return sum(self._dtypes.values())

    def finish(self, index: bytes, config: bytes, complete: bool = True) -> Report:
        """The sum of it all; *index* and *config* are the contents of the two JSON files.

        With *complete*, every layer that the config promises must have been seen.
        """
        if complete:
            self._check_layers()
        self._add_embedding_of_last_stage()
        self._add_indexers()
        self._add_absorbed_copies()
        drafts = sorted(layer for layer in self._seen_layers if layer >= self._layers)
        digests = {
            CONFIG_FILE: hashlib.sha256(config).hexdigest(),
            INDEX_FILE: hashlib.sha256(index).hexdigest(),
            **self._digests,
        }
        lines = [f"{file} {self._files.get(file, 0)} {digests[file]}\n" for file in sorted(digests)]
        quantization = self._config.get("quantization_config") or self._text.get("quantization_config")
        return Report(
            config=self._config,
            files=dict(sorted(self._files.items())),
            missing=tuple(self._missing),
            damaged=dict(sorted(self._damaged.items())),
            tensors=len(self._owner),
            total_bytes=self.total_bytes,
            bytes_by_dtype=dict(sorted(self._dtypes.items())),
            bytes_by_part={part: self._parts[part] for part in PARTS if self._parts[part]},
            indexer_layers=tuple(sorted(self._indexers)),
            mtp={
                "promised": self._promised > 0,
                "present": bool(drafts) and len(drafts) >= self._promised,
                "precision": _precision(self._mtp_kinds),
                "layers": drafts,
                "bytes": self._parts["mtp"],
            },
            quantization=str(quantization.get("quant_method")) if isinstance(quantization, dict) else None,
            weights_bytes=tuple(
                size + experts for size, of_ranks in zip(self._stage_bytes, self._expert_bytes) for experts in of_ranks
            ),
            digests=digests,
            digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
            problems=tuple(self._problems),
        )


@contextmanager
def _uncollected() -> t.Iterator[None]:
    """Hundreds of thousands of small objects without a cycle: looking for one takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: str) -> bytes:
    stat_of(path)
    with open(path, "rb") as stream:
        return stream.read()


def _weights(files: t.Mapping[str, str]) -> list[str]:
    """The safetensors files that lie in the folder itself."""
    return [name for name in files if name.endswith(WEIGHTS_SUFFIX) and os.sep not in name]


def _no_index(where: str, files: int) -> str:
    return f"{where} has {_count(files, WEIGHTS_SUFFIX + ' file')} but no {INDEX_FILE}; copy it there"


class _Headers:
    """Reads headers, each once if it is asked to keep them, and turns what is wrong into sentences by path."""

    def __init__(self) -> None:
        self._kept: dict[str, Header] = {}
        self.problems: dict[str, str] = {}

    def read(self, path: str, keep: bool = False) -> Header | None:
        header = self._kept.get(path)
        if header is not None:
            return header
        try:
            # A pipe would keep its reader waiting forever.
            stat_of(path)
            header = read_header(path)
        except ValueError as error:
            self.problems[path] = str(error)
        else:
            if keep:
                self._kept[path] = header
        return header


def _survey(
    files: t.Mapping[str, str],
    weight_map: t.Mapping[str, str] | None,
    index: t.Callable[[int], bytes],
    where: str,
    layout: Layout,
    headers: _Headers,
    allow_files: t.Iterable[str],
) -> tuple[Report, bytes]:
    """The report on *files* (name to path), and the index, which *index* makes when the total size is known.

    *where* is the folder, or both, for the sentences.
    """
    config = _read(files[CONFIG_FILE])
    weights = _weights(files)
    survey = Survey(parse_object(config, files[CONFIG_FILE]), weight_map, layout)
    if not weights:
        survey.problem(f"no {WEIGHTS_SUFFIX} file is in {where}, and nothing else is loaded; copy the weights there")
    elif weight_map is None and len(weights) > 1:
        survey.problem(_no_index(where, len(weights)))
    survey.note_missing(files, where)
    for name in weights:
        if survey.is_used(name):
            header = headers.read(files[name])
            if header is not None:
                survey.add(name, header)
            else:
                survey.note_damaged(name, headers.problems[files[name]])
    unsafe = unsafe_files(files, allow_files)
    if unsafe:
        survey.problem(
            f"{where} holds {_some(unsafe)}: weights in such formats can run code when they are loaded, and have no "
            "header to check; take them away, or allow them by name (allow_files)"
        )
    text = index(survey.total_bytes)
    # What else is missing can only be told when everything could be read.
    complete = bool(weights) and all(name in files for name in survey.shards) and not headers.problems
    return survey.finish(text, config, complete), text


def _require_config(folder: str, files: t.Mapping[str, str]) -> None:
    if CONFIG_FILE not in files:
        raise ValueError(
            f"{folder} has no {CONFIG_FILE}, so it is no model folder; copy the whole checkpoint there, "
            "or correct the path"
        )


def _survey_as_it_is(folder: str, files: t.Mapping[str, str], layout: Layout, allow_files: t.Iterable[str]) -> Report:
    _require_config(folder, files)
    index = _read(files[INDEX_FILE]) if INDEX_FILE in files else b""
    weight_map = parse_index(index, files[INDEX_FILE]) if INDEX_FILE in files else None
    return _survey(files, weight_map, lambda _total: index, folder, layout, _Headers(), allow_files)[0]


@_uncollected()
def survey_folder(folder: str, layout: Layout = Layout(), allow_files: t.Iterable[str] = ()) -> Report:
    """The report on one model folder. Files in unsafe formats are a problem unless a pattern of *allow_files* fits."""
    return _survey_as_it_is(folder, list_folder(folder), layout, allow_files)


@dataclass(frozen=True)
class Hybrid:
    """A model folder made of two: its files by name, each ``(origin, path)``, and its own index.

    The origin is `base` or `overlay`. ``index`` is None when the base is taken as it is.
    """

    files: t.Mapping[str, tuple[str, str]]
    index: bytes | None
    report: Report


def merge_index(
    base: t.Mapping[str, str], overlay: t.Mapping[str, str], overlay_tensors: t.Mapping[str, t.Iterable[str]]
) -> dict[str, str]:
    """Tensor to shard for the hybrid: every tensor of an overlay's file comes from that file.

    A shard that the overlay replaces loses what the base had in it. What the overlay's own index says counts for
    its own files and for tensors that the base does not know.
    """
    merged = {name: shard for name, shard in base.items() if shard not in overlay_tensors}
    for name, shard in overlay.items():
        if shard in overlay_tensors or name not in merged:
            merged[name] = shard
    for shard, names in overlay_tensors.items():
        merged.update((name, shard) for name in names)
    return merged


def _base_map(folder: str, files: t.Mapping[str, str], headers: _Headers) -> tuple[dict[str, str], t.Any]:
    """Tensor to shard in the base, and its index's metadata. One file alone needs no index."""
    if INDEX_FILE in files:
        text = _read(files[INDEX_FILE])
        return parse_index(text, files[INDEX_FILE]), parse_object(text, files[INDEX_FILE]).get("metadata")
    weights = _weights(files)
    if len(weights) != 1:
        raise ValueError(_no_index(folder, len(weights)))
    header = headers.read(files[weights[0]], keep=True)
    return dict.fromkeys(header.tensors if header else (), weights[0]), None


@_uncollected()
def plan_hybrid(base: str, overlay: str | None, layout: Layout = Layout(), allow_files: t.Iterable[str] = ()) -> Hybrid:
    """What a hybrid of two folders has to hold. A file of the overlay, config.json included, wins over the base's."""
    base_files = list_folder(base)
    files = {name: ("base", path) for name, path in base_files.items()}
    if overlay is None:
        return Hybrid(files, None, _survey_as_it_is(base, base_files, layout, allow_files))
    _require_config(base, base_files)
    overlay_files = list_folder(overlay)
    headers = _Headers()
    overlay_headers = {name: headers.read(overlay_files[name], keep=True) for name in _weights(overlay_files)}
    if not overlay_headers:
        raise ValueError(f"{overlay} has no {WEIGHTS_SUFFIX} file, so it adds nothing to {base}; correct the overlay")
    base_map, metadata = _base_map(base, base_files, headers)
    overlay_map: dict[str, str] = {}
    if INDEX_FILE in overlay_files:
        overlay_map = parse_index(_read(overlay_files[INDEX_FILE]), overlay_files[INDEX_FILE])
    weight_map = merge_index(
        base_map, overlay_map, {name: header.tensors if header else () for name, header in overlay_headers.items()}
    )

    def index(total_bytes: int) -> bytes:
        known = metadata if isinstance(metadata, dict) else {}
        whole = {"metadata": {**known, "total_size": total_bytes}, "weight_map": weight_map}
        # One line a tensor, by separators: an indent would take the slow encoder.
        return (json.dumps(whole, separators=(",\n", ": "), sort_keys=True) + "\n").encode()

    files.update((name, ("overlay", path)) for name, path in overlay_files.items())
    paths = {name: path for name, (_origin, path) in files.items()}
    report, text = _survey(paths, weight_map, index, f"{base} and {overlay}", layout, headers, allow_files)
    files.pop(INDEX_FILE, None)
    return Hybrid(dict(sorted(files.items())), text, report)
