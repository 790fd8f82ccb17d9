# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which caches each layer of a model keeps, read from its config.json.

A model family is one row of `_FAMILIES`; a model that has no row is refused by name. The rules are those of
the model classes of vLLM and of the config classes that fill in what a config.json leaves out.
Private to this collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import (
    CHUNKED,
    CROSS,
    FULL,
    INDEXER,
    MLA,
    SLIDING,
    STATE,
)

Config = Mapping[str, Any]
# What a config may call its layers, and what it called them of old.
_LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")
_LEGACY_TYPES = {"attention": "full_attention", "mamba": "linear_attention"}
# No model comes near it; a mistyped figure is not to keep the planner busy for hours.
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class StateShape:
    """The recurrent state of one layer, over all tensor-parallel ranks.

    kind: `gdn` (gated delta net) or `mamba2`; conv_width: channels of the convolution state;
    kernel: taps of the convolution; heads x rows x columns: the recurrent state;
    groups, group_width: groups that are repeated when TP does not divide them (mamba2);
    chunk: tokens that its prefill kernel takes at once (mamba2);
    dtype: what the checkpoint wants for the recurrent state, None: that of the convolution state.
    """

    kind: str
    conv_width: int
    kernel: int
    heads: int
    rows: int
    columns: int
    groups: int = 0
    group_width: int = 0
    chunk: int = 0
    dtype: str | None = None


@dataclass(frozen=True)
class Cache:
    """One cache of one layer, over all ranks and before block size and dtype are known.

    kind: a kind of `_kv_specs`; heads: KV heads in all (attention) or 1; key, value: elements of a K and a V head;
    window: tokens of the window or chunk; state: for recurrent layers.
    """

    kind: str
    heads: int = 1
    key: int = 0
    value: int = 0
    window: int = 0
    state: StateShape | None = None


Layer = tuple[Cache, ...]


@dataclass(frozen=True)
class Latent:
    """What a kernel of MLA asks of a model: elements of its heads without and with rotary embedding, of the latent
    vector and of V, and tokens that the indexer picks. None: the config leaves it to the engine."""

    nope: int | None
    rope: int | None
    rank: int | None
    value: int | None
    picked: int | None


@dataclass(frozen=True)
class Model:
    """What the planner has to know of a model.

    layers: caches by layer; drafts: caches of the layers that the built-in MTP head adds; draft_count: its layers;
    can_draft: the family has such a head, whether or not this config has layers of it;
    draft_key: the key with the number of its layers, where this config leaves it out (None: it does not);
    context: the longest context that the config allows (None: the config does not say), context_key: where it says so;
    old_context: the same as engines before 0.30 find it; default_context: what is served when no length is asked for;
    layer_name: what the engine calls the attention of a layer;
    cache_scheme: cache dtype that the checkpoint itself demands; encoder_tokens: of an encoder-decoder model;
    assumptions: sentences about keys that the config leaves to the engine's defaults;
    refusal: what the engine's model class says against this config;
    latent: what kernels of MLA ask for (None: no MLA);
    computes_with: the dtype that the config asks for (None: it does not);
    dealt_width: elements of a layer that must be a multiple of all ranks, stages included (0: no such rule);
    expert_layers: by layer, whether it has experts, where no pipeline stage may be without (empty: no such rule), and
    no_experts: what the model class says of such a stage.
    """

    family: str
    mla: bool
    sparse: bool
    query_heads: int
    kv_heads: int
    layers: tuple[Layer, ...]
    drafts: tuple[Layer, ...]
    draft_count: int
    can_draft: bool
    context: int | None
    old_context: int | None
    default_context: int | None
    context_key: str
    model_max_length: int | None
    cache_scheme: str | None
    encoder_tokens: int
    hybrid: bool
    draft_key: str | None = None
    layer_name: str = "model.layers.{}.self_attn.attn"
    assumptions: tuple[str, ...] = ()
    refusal: str | None = None
    latent: Latent | None = None
    computes_with: str | None = None
    dealt_width: int = 0
    expert_layers: tuple[bool, ...] = ()
    no_experts: str = ""


class _Fields:
    """Typed access to a config.json; every complaint names the key and the model.

    refusal: what the engine's model class says against this config, which it does only after all other checks.
    """

    def __init__(self, config: Config, model_type: str) -> None:
        self.config = config
        self.model_type = model_type
        self.assumed: dict[str, int] = {}
        self.derived: dict[str, str] = {}
        self.refusal: str | None = None

    def has(self, key: str) -> bool:
        return self.config.get(key) is not None

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.config.get(key)
        if value is None:
            if default is None:
                state = "null" if key in self.config else "missing"
                raise ValueError(f"config: {key} is {state}; model_type {self.model_type} cannot be sized without it")
            self.assumed[key] = default
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"config: {key} is {value!r}; it must be an integer of at least {minimum}")
        return value

    @property
    def assumptions(self) -> tuple[str, ...]:
        """A sentence for every key that the config leaves to the engine."""
        sentences = {
            key: f"config: {key} is missing; the engine's default for model_type {self.model_type} is {value}"
            for key, value in self.assumed.items()
        }
        sentences.update({key: f"config: {key} is missing; {rule}" for key, rule in self.derived.items()})
        return tuple(sentences[key] for key in sorted(sentences))

    def layer_types(self, length: int) -> list[str] | None:
        """layer_types of the config under the names of today, None where it has none."""
        types = self.strings("layer_types", length)
        if types is None:
            return None
        types = [_LEGACY_TYPES.get(entry, entry) for entry in types]
        unknown = [entry for entry in types if entry not in _LAYER_TYPES]
        if unknown:
            raise ValueError(
                "config: layer_types has {!r}, which is no kind of layer; known are {}".format(
                    unknown[0], ", ".join(_LAYER_TYPES)
                )
            )
        return types

    def strings(self, key: str, length: int) -> list[str] | None:
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ValueError(f"config: {key} must be a list of strings, not {type(value).__name__}")
        if len(value) < length:
            raise ValueError(f"config: {key} has {len(value)} entries for {length} layers")
        return value[:length]


@dataclass(frozen=True)
class _Heads:
    """Attention heads: query heads, KV heads, elements of a head."""

    query: int
    kv: int
    size: int


@dataclass(frozen=True)
class Family:
    """How one model_type is read.

    build: returns the caches by layer; mtp_key: config key with the number of built-in draft layers;
    mtp_layers: draft layers where that key is missing; own_head_dim: the config's head_dim counts, not hidden_size over
    heads alone; attention: what the engine calls the attention of a layer; sparse: the model class cannot do without an
    indexer; defaults: what the model's own config class fills in where published configs leave a key out, and refuses
    as null unless the key is `nullable`; whole_hidden: that class wants hidden_size to be a multiple of the heads.
    """

    build: Callable[[_Fields, Family], tuple[Layer, ...]]
    mtp_key: str | None = None
    mla: bool = False
    hybrid: bool = False
    mtp_layers: int = 0
    own_head_dim: bool = True
    types: Callable[[_Fields, int], list[str]] | None = None
    experts: Callable[[_Fields, int], list[bool]] | None = None
    no_experts: str = ""
    attention: str = "self_attn.attn"
    sparse: bool = False
    defaults: tuple[tuple[str, int], ...] = ()
    nullable: tuple[str, ...] = ()
    whole_hidden: bool = False

    def default(self, key: str) -> int | None:
        return dict(self.defaults).get(key)


def _refuse_null(fields: _Fields, family: Family, key: str) -> None:
    if key in fields.config and fields.config[key] is None and family.default(key) is not None:
        raise ValueError(f"config: {key} is null; model_type {fields.model_type} wants an integer, or the key left out")


def _heads(fields: _Fields, family: Family) -> _Heads:
    query = fields.integer("num_attention_heads", family.default("num_attention_heads"))
    explicit = "num_key_value_heads" in fields.config
    for key in ("num_key_value_heads", "head_dim"):
        if key not in family.nullable:
            _refuse_null(fields, family, key)
    if family.whole_hidden and fields.has("hidden_size") and fields.integer("hidden_size") % query:
        raise ValueError(
            f"config: hidden_size is {fields.integer('hidden_size')}; model_type {fields.model_type} wants a multiple "
            f"of num_attention_heads ({query})"
        )
    kv = fields.integer("num_key_value_heads", query if explicit else family.default("num_key_value_heads") or query)
    size = family.default("head_dim")
    if not family.own_head_dim or not fields.has("head_dim") and size is None:
        hidden = fields.integer("hidden_size")
        if hidden < query:
            raise ValueError(f"config: hidden_size is {hidden}; it must be at least num_attention_heads ({query})")
        if family.own_head_dim:
            fields.derived["head_dim"] = f"the engine takes hidden_size over num_attention_heads, {hidden // query}"
        return _Heads(query, kv, hidden // query)
    return _Heads(query, kv, fields.integer("head_dim", size))


def _layer_count(fields: _Fields, key: str = "num_hidden_layers") -> int:
    return _bounded(key, fields.integer(key))


def _bounded(key: str, count: int) -> int:
    if count > _MOST_LAYERS:
        raise ValueError(f"config: {key} is {count}; it must be at most {_MOST_LAYERS}")
    return count


def _windowed(heads: _Heads, window: int | None) -> Cache:
    if window is None:
        return Cache(FULL, heads.kv, heads.size, heads.size)
    return Cache(SLIDING, heads.kv, heads.size, heads.size, window=window)


def _window_size(fields: _Fields, family: Family) -> int | None:
    if fields.config.get("sliding_window") == 0:
        return None
    if "sliding_window" in fields.config and fields.config["sliding_window"] is None:
        return None
    default = family.default("sliding_window")
    if default is None and not fields.has("sliding_window"):
        return None
    return fields.integer("sliding_window", default)


def _plain(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Llama and its kin: full attention, or windows where layer_types (or the whole model) says so."""
    heads, count = _heads(fields, family), _layer_count(fields)
    window = _window_size(fields, family)
    types = fields.layer_types(count)
    if types is not None and "sliding_attention" in types and "sliding_window" not in fields.config and window is None:
        raise ValueError("config: sliding_window is missing, and layer_types has sliding_attention")
    if window is None:
        return ((_windowed(heads, None),),) * count
    if types is None:
        return ((_windowed(heads, window),),) * count
    return tuple((_windowed(heads, window if entry == "sliding_attention" else None),) for entry in types)


def _alike(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Models whose vLLM class knows no window: the engine puts that of the config on all layers or on none."""
    heads, count, window = _heads(fields, family), _layer_count(fields), _window_size(fields, family)
    types = fields.layer_types(count)
    if types is not None and set(types) != {"sliding_attention"}:
        window = None
    return ((_windowed(heads, window),),) * count


def _moe_heads(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """GLM-4.x MoE: a model class that reads head_dim without a default."""
    if "head_dim" not in fields.config:
        fields.integer("head_dim")
    return _alike(fields, family)


def _qwen_types(fields: _Fields, count: int) -> list[str]:
    """Windows from max_window_layers on."""
    first = fields.integer("max_window_layers", 28, minimum=0) if _qwen_window(fields) is not None else count
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(count)]


def _qwen2_moe_types(fields: _Fields, count: int) -> list[str]:
    """Windows on every other layer below max_window_layers."""
    first = fields.integer("max_window_layers", minimum=0) if _qwen_window(fields) is not None else 0
    return ["sliding_attention" if layer % 2 == 0 and layer < first else "full_attention" for layer in range(count)]


def _gemma2_types(fields: _Fields, count: int) -> list[str]:
    """A window on every other layer."""
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(count)]


def _gemma3_types(fields: _Fields, count: int) -> list[str]:
    """Windows on all layers but every sixth."""
    step = fields.integer("sliding_window_pattern", 6)
    return ["sliding_attention" if (layer + 1) % step else "full_attention" for layer in range(count)]


def _gated_types(fields: _Fields, count: int) -> list[str]:
    """Full attention on every fourth layer."""
    interval = fields.integer("full_attention_interval", 4)
    return ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(count)]


def _every_expert(fields: _Fields, count: int) -> list[bool]:
    return [True] * count


def _glm_experts(fields: _Fields, count: int) -> list[bool]:
    dense = fields.integer("first_k_dense_replace", minimum=0) if fields.has("first_k_dense_replace") else 1
    return [layer >= dense for layer in range(count)]


def _qwen_experts(fields: _Fields, count: int) -> list[bool]:
    """Every decoder_sparse_step-th layer that mlp_only_layers does not name."""
    step = fields.integer("decoder_sparse_step") if fields.has("decoder_sparse_step") else 1
    dense = fields.config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ValueError(f"config: mlp_only_layers is {dense!r}; it must be a list of layer numbers")
    some = not fields.has("num_experts") or fields.integer("num_experts", minimum=0) > 0
    return [some and layer not in dense and (layer + 1) % step == 0 for layer in range(count)]


def _types(fields: _Fields, family: Family, count: int) -> list[str]:
    """layer_types of the config, or what its config class fills in."""
    given = fields.layer_types(count)
    if given is not None:
        return given
    return family.types(fields, count) if family.types is not None else ["full_attention"] * count


def _qwen_window(fields: _Fields) -> int | None:
    if not fields.config.get("use_sliding_window"):
        return None
    if "sliding_window" in fields.config and fields.config["sliding_window"] in (None, 0):
        return None
    return fields.integer("sliding_window", 4096)


def _qwen(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Qwen2 and Qwen3: windows only with use_sliding_window, and then for all layers or none."""
    heads, count, window = _heads(fields, family), _layer_count(fields), _qwen_window(fields)
    types = _types(fields, family, count)
    if len(set(types)) == 1:
        return ((_windowed(heads, window if types[0] == "sliding_attention" else None),),) * count
    first = fields.integer("max_window_layers", 28, minimum=0)
    if first != count:
        fields.refusal = (
            "Sliding window for some but all layers is not supported. This model uses sliding window but "
            f"`max_window_layers` = {first} is less than `num_hidden_layers` = {count}. Please open an "
            "issue to discuss this feature."
        )
    return ((_windowed(heads, None),),) * count


def _qwen2_moe(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Qwen2-MoE: the window counts only when every layer has it."""
    heads, count, window = _heads(fields, family), _layer_count(fields), _qwen_window(fields)
    if set(_types(fields, family, count)) != {"sliding_attention"}:
        window = None
    return ((_windowed(heads, window),),) * count


def _qwen3_moe(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Qwen3-MoE: the window of use_sliding_window is on every layer, unless layer_types says otherwise."""
    heads, count, window = _heads(fields, family), _layer_count(fields), _qwen_window(fields)
    types = fields.layer_types(count)
    if types is not None and set(types) != {"sliding_attention"}:
        window = None
    return ((_windowed(heads, window),),) * count


def _alternating(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Gemma: windows on most layers."""
    heads, count = _heads(fields, family), _layer_count(fields)
    window = _window_size(fields, family)
    if fields.config.get("use_bidirectional_attention"):
        raise ValueError("config: use_bidirectional_attention is an embedding model, which keeps no cache")
    types = _types(fields, family, count)
    odd = [entry for entry in types if entry not in ("full_attention", "sliding_attention")]
    if odd and fields.model_type == "gemma3_text":
        # The model's class looks up the rotary embedding of the layer by its type.
        fields.refusal = repr(odd[0])
    return tuple((_windowed(heads, window if entry == "sliding_attention" else None),) for entry in types)


def _gpt_oss(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """gpt-oss: vLLM puts the window on even layers whatever layer_types says, unless it says all."""
    heads, count = _heads(fields, family), _layer_count(fields)
    window = _window_size(fields, family)
    for rope in _ropes(fields.config):
        for key in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"):
            if rope.get(key) is None:
                raise ValueError(
                    f"config: rope_parameters has no {key}; model_type gpt_oss cannot be loaded without it"
                )
    types = fields.layer_types(count)
    step = 1 if types is not None and set(types) == {"sliding_attention"} else 2
    return tuple((_windowed(heads, window if layer % step == 0 else None),) for layer in range(count))


def _llama4(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Llama 4: chunked local attention where rotary embeddings are used, full attention elsewhere."""
    heads, count = _heads(fields, family), _layer_count(fields)
    chunk = fields.config.get("attention_chunk_size", 8192)
    rope = fields.config.get("no_rope_layers") or []
    if not isinstance(rope, list) or any(isinstance(flag, bool) or flag not in (0, 1) for flag in rope):
        raise ValueError(f"config: no_rope_layers is {rope!r}; it must be a list of 0 and 1, one for each layer")
    interval = fields.integer("no_rope_layer_interval", 4)
    full = (_windowed(heads, None),)
    if not chunk:
        return (full,) * count
    local = (Cache(CHUNKED, heads.kv, heads.size, heads.size, window=fields.integer("attention_chunk_size", 8192)),)
    flags = rope or [int((layer + 1) % interval != 0) for layer in range(count)]
    if len(flags) < count:
        raise ValueError(f"config: no_rope_layers has {len(flags)} entries for {count} layers")
    return tuple(local if flags[layer] else full for layer in range(count))


def _latent(fields: _Fields) -> Cache:
    """The one latent vector of MLA: kv_lora_rank + qk_rope_head_dim elements, no V."""
    width = fields.integer("kv_lora_rank") + fields.integer("qk_rope_head_dim")
    return Cache(MLA, 1, width, 0)


def _latent_shape(fields: _Fields) -> Latent:
    keys = ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "v_head_dim", "index_topk")
    return Latent(*(fields.integer(key, minimum=0) if fields.has(key) else None for key in keys))


def _indexer(fields: _Fields) -> Cache:
    """The indexer's key: one byte an element and four bytes of scale for each 128 elements."""
    size = fields.integer("index_head_dim")
    return Cache(INDEXER, 1, size + size // 128 * 4, 0)


def owns_indexer(fields_config: Config, layer: int) -> bool:
    """Whether a layer of a sparse model has an indexer of its own.

    A pattern decides by its letter (`S`: shared), layers beyond the pattern own one; without a pattern
    max(layer - offset + 1, 0) % freq == 0 decides, with offset 2 and freq 1 when the config is silent.
    """
    pattern = fields_config.get("index_topk_pattern")
    if pattern is not None:
        return layer >= len(pattern) or pattern[layer] != "S"
    freq, offset = (fields_config.get(key) for key in ("index_topk_freq", "index_skip_topk_offset"))
    freq, offset = 1 if freq is None else freq, 2 if offset is None else offset
    return bool(max(layer - offset + 1, 0) % freq == 0)


def _check_index_rule(fields: _Fields) -> None:
    pattern = fields.config.get("index_topk_pattern")
    if pattern is not None and not (isinstance(pattern, (str, list)) and all(entry in ("F", "S") for entry in pattern)):
        raise ValueError(f"config: index_topk_pattern is {pattern!r}; it must consist of F and S, one for each layer")
    fields.integer("index_topk_freq", 1)
    fields.integer("index_skip_topk_offset", 2, minimum=0)


def _mla(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """DeepSeek, Kimi K2 and GLM-5: MLA, with an indexer where the config has index_topk."""
    count, latent = _layer_count(fields), _latent(fields)
    if family.sparse:
        fields.integer("index_topk")
    if not fields.has("index_topk"):
        return ((latent,),) * count
    _check_index_rule(fields)
    own, shared = (latent, _indexer(fields)), (latent,)
    return tuple(own if owns_indexer(fields.config, layer) else shared for layer in range(count))


def _state_dtype(fields: _Fields, key: str) -> str | None:
    value = fields.config.get(key)
    if value not in (None, "auto", "float32", "bfloat16", "float16"):
        raise ValueError(f"config: {key} is {value!r}; it must be float32, bfloat16 or float16")
    return None if value in (None, "auto") else str(value)


def _gated_delta(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Qwen3-Next and Qwen3.5: gated delta net, with full attention on every fourth layer."""
    heads, count = _heads(fields, family), _layer_count(fields)
    types = _types(fields, family, count)
    key_heads, value_heads = fields.integer("linear_num_key_heads"), fields.integer("linear_num_value_heads")
    key, value = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
    state = StateShape(
        kind="gdn",
        conv_width=2 * key_heads * key + value_heads * value,
        kernel=fields.integer("linear_conv_kernel_dim"),
        heads=value_heads,
        rows=value,
        columns=key,
        dtype=_state_dtype(fields, "mamba_ssm_dtype") if fields.model_type.startswith("qwen3_5") else None,
    )
    odd = [entry for entry in types if entry not in ("full_attention", "linear_attention")]
    if odd:
        fields.refusal = f"Invalid layer_type {odd[0]}"
    recurrent, full = (Cache(STATE, state=state),), (_windowed(heads, None),)
    return tuple(full if entry == "full_attention" else recurrent for entry in types)


_NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NEMOTRON_NAMES = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}


def _nemotron_types(fields: _Fields, pattern_key: str, names_keys: Sequence[str]) -> list[str]:
    """Kinds of the layers by name; without names, by the letters of a pattern."""
    pattern = fields.config.get(pattern_key)
    if pattern is not None and not any(fields.has(key) for key in names_keys):
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"config: {pattern_key} is {pattern!r}; it must be a string of M, *, - and E")
        unknown = sorted(set(pattern) - set(_NEMOTRON_LETTERS))
        if unknown:
            raise ValueError(
                f"config: {pattern_key} has {unknown[0]!r}; known are M (Mamba2), * (attention), - (MLP), E (MoE)"
            )
        return [_NEMOTRON_LETTERS[letter] for letter in pattern]
    for key in names_keys:
        if fields.has(key):
            names = fields.strings(key, 1) or []
            names = list(fields.config[key])
            unknown = sorted(set(names) - set(_NEMOTRON_NAMES))
            if unknown:
                raise ValueError(f"config: {key} has {unknown[0]!r}, which is no kind of layer of {fields.model_type}")
            return [_NEMOTRON_NAMES[name] for name in names]
    raise ValueError(f"config: {pattern_key} is missing; model_type {fields.model_type} cannot be sized without it")


def _nemotron_layer(fields: _Fields, family: Family, kind: str) -> Layer:
    if kind == "attention":
        return (_windowed(_heads(fields, family), _window_size(fields, family)),)
    if kind != "mamba":
        return ()
    heads, size = fields.integer("mamba_num_heads"), fields.integer("mamba_head_dim")
    groups = fields.integer("n_groups", fields.config.get("mamba_n_groups"))
    width = fields.integer("ssm_state_size")
    state = StateShape(
        kind="mamba2",
        conv_width=heads * size,
        kernel=fields.integer("conv_kernel", fields.config.get("mamba_d_conv")),
        heads=heads,
        rows=size,
        columns=width,
        groups=groups,
        group_width=width,
        chunk=fields.integer("mamba_chunk_size" if fields.has("mamba_chunk_size") else "chunk_size", 128),
        dtype=_state_dtype(fields, "mamba_ssm_cache_dtype") or "float32",
    )
    return (Cache(STATE, state=state),)


def _nemotron_h(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    types = _nemotron_types(fields, "hybrid_override_pattern", ("layers_block_type", "layer_types"))
    return tuple(_nemotron_layer(fields, family, kind) for kind in types)


def _mimo(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """MiMo-V2: V heads are smaller than K heads, and windowed layers (1 in the pattern) have heads of their own."""
    count, pattern = _layer_count(fields), fields.config.get("hybrid_layer_pattern")
    if not isinstance(pattern, list) or any(entry not in (0, 1) for entry in pattern) or len(pattern) < count:
        raise ValueError(f"config: hybrid_layer_pattern is {pattern!r}; it must be a list of {count} entries, 0 or 1")
    key = fields.integer("head_dim")
    full = Cache(FULL, fields.integer("num_key_value_heads"), key, fields.integer("v_head_dim", key))
    windowed = _mimo_windowed(fields)
    return tuple((windowed if entry else full,) for entry in pattern[:count])


def _mimo_windowed(fields: _Fields) -> Cache:
    key = fields.integer("swa_head_dim")
    heads, value = fields.integer("swa_num_key_value_heads"), fields.integer("swa_v_head_dim", key)
    return Cache(SLIDING, heads, key, value, window=fields.integer("sliding_window_size"))


def _whisper(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Whisper: each decoder layer keeps its own keys and those of the encoder's output."""
    heads = fields.integer("decoder_attention_heads")
    size = fields.integer("d_model") // heads
    layer = (Cache(FULL, heads, size, size), Cache(CROSS, heads, size, size))
    return (layer,) * _layer_count(fields, "decoder_layers")


_GEMMA2 = (("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256), ("sliding_window", 4096))
_HEAD_128 = (("head_dim", 128),)
_HEAD_256 = (("head_dim", 256),)
_KV_HEADS = "num_key_value_heads"
_KV_4 = ((_KV_HEADS, 4),)
_KV_8 = ((_KV_HEADS, 8),)
_KV_32 = ((_KV_HEADS, 32),)
_MTP_KEY = "num_nextn_predict_layers"

# model_type of the text part of a config -> how it is read. Defaults are those of the config classes of transformers.
_FAMILIES: dict[str, Family] = {
    "llama": Family(_plain, whole_hidden=True),
    "mistral": Family(_plain, defaults=(("sliding_window", 4096), *_KV_8), nullable=("head_dim",)),
    "ministral3": Family(_plain, defaults=_HEAD_128 + _KV_8),
    "mixtral": Family(
        _plain,
        experts=_every_expert,
        no_experts="No MixtralMoE layer found  in model.layers.",
        defaults=_KV_8,
    ),
    "qwen2": Family(_qwen, types=_qwen_types, own_head_dim=False, defaults=_KV_32, nullable=(_KV_HEADS,)),
    "qwen2_moe": Family(_qwen2_moe, types=_qwen2_moe_types, own_head_dim=False, defaults=((_KV_HEADS, 16),)),
    "qwen3": Family(_qwen, types=_qwen_types, defaults=_HEAD_128 + _KV_32, nullable=(_KV_HEADS,)),
    "qwen3_moe": Family(
        _qwen3_moe,
        experts=_qwen_experts,
        no_experts="No Qwen3MoE layer found in the model.layers.",
        defaults=_KV_4,
    ),
    "qwen3_next": Family(
        _gated_delta,
        types=_gated_types,
        experts=_qwen_experts,
        no_experts="No Qwen3Next layer found in the model.layers.",
        mtp_key=_MTP_KEY,
        hybrid=True,
        mtp_layers=1,
        defaults=_HEAD_256 + ((_KV_HEADS, 2),),
    ),
    "qwen3_5_text": Family(
        _gated_delta,
        types=_gated_types,
        mtp_key="mtp_num_hidden_layers",
        hybrid=True,
        mtp_layers=1,
        defaults=_HEAD_256 + _KV_4,
    ),
    "qwen3_5_moe_text": Family(
        _gated_delta,
        types=_gated_types,
        mtp_key="mtp_num_hidden_layers",
        hybrid=True,
        mtp_layers=1,
        defaults=_HEAD_256 + ((_KV_HEADS, 2),),
    ),
    "gemma2": Family(_alternating, types=_gemma2_types, whole_hidden=True, defaults=_GEMMA2),
    "gemma3_text": Family(
        _alternating, types=_gemma3_types, whole_hidden=True, defaults=_GEMMA2 + (("max_position_embeddings", 131072),)
    ),
    "gpt_oss": Family(_gpt_oss, attention="attn.attn", defaults=(("head_dim", 64), ("sliding_window", 128), *_KV_8)),
    "glm4": Family(_alike, defaults=(*_HEAD_128, (_KV_HEADS, 2))),
    "glm4_moe": Family(
        _moe_heads,
        mtp_key=_MTP_KEY,
        experts=_glm_experts,
        no_experts="No Glm4MoE layer found in model.layers.",
        defaults=_KV_8,
    ),
    "glm4_moe_lite": Family(
        _mla,
        mtp_key=_MTP_KEY,
        mla=True,
        experts=_glm_experts,
        no_experts="No Glm4MoE layer found in model.layers.",
    ),
    "glm_moe_dsa": Family(_mla, mtp_key=_MTP_KEY, mla=True, sparse=True),
    "deepseek_v2": Family(_mla, mla=True, whole_hidden=True),
    "deepseek_v3": Family(_mla, mtp_key=_MTP_KEY, mla=True),
    "deepseek_v32": Family(_mla, mtp_key=_MTP_KEY, mla=True, sparse=True),
    "kimi_k2": Family(_mla, mla=True),
    "mimo_v2_flash": Family(_mimo, mtp_layers=1),
    "minimax_m2": Family(_alike, defaults=_HEAD_128 + _KV_8),
    "nemotron_h": Family(
        _nemotron_h,
        mtp_key=_MTP_KEY,
        hybrid=True,
        attention="mixer.attn",
        defaults=_HEAD_128 + _KV_8,
    ),
    "llama4_text": Family(_llama4, defaults=_HEAD_128 + _KV_8),
    "whisper": Family(_whisper),
}

# Wrappers whose text part is one of the above.
_WRAPPERS = {
    "gemma3": "text_config",
    "llama4": "text_config",
    "mistral3": "text_config",
    "qwen3_5": "text_config",
    "qwen3_5_moe": "text_config",
    "kimi_vl": "text_config",
    "kimi_k25": "text_config",
}

# Parts of a config that are configs themselves.
_PARTS = ("text_config", "vision_config", "audio_config")
_ROPE_NAMES = ("rope_parameters", "rope_scaling")
# Families whose config class works out the KV heads and the size of a head.
_DERIVED_HEADS = ("llama", "mistral", "ministral3")

# Architectures that identify a text model whose config has no model_type, or one of its own.
_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "Qwen3NextForCausalLM": "qwen3_next",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "GptOssForCausalLM": "gpt_oss",
    "Glm4ForCausalLM": "glm4",
    "Glm4MoeForCausalLM": "glm4_moe",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
    "GlmMoeDsaForCausalLM": "glm_moe_dsa",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "DeepseekV32ForCausalLM": "deepseek_v32",
    "KimiK2ForCausalLM": "kimi_k2",
    "MiMoV2FlashForCausalLM": "mimo_v2_flash",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "NemotronHForCausalLM": "nemotron_h",
    "Llama4ForCausalLM": "llama4_text",
    "WhisperForConditionalGeneration": "whisper",
}

# Published under the name of another family.
_ALIASES: dict[tuple[str | None, str], str] = {("minimax", "MiniMaxM2ForCausalLM"): "minimax_m2"}

KNOWN_MODEL_TYPES = tuple(sorted(set(_FAMILIES) | set(_WRAPPERS)))

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# The longest context of a model whose config does not say, by its config class.
_POSITIONS = {
    "deepseek_v2": 2048,
    "deepseek_v3": 4096,
    "deepseek_v32": 4096,
    "gemma2": 8192,
    "gemma3_text": 131_072,
    "glm4": 131_072,
    "glm4_moe": 131_072,
    "glm4_moe_lite": 202_752,
    "glm_moe_dsa": 202_752,
    "gpt_oss": 131_072,
    "kimi_k2": 4096,
    "llama": 2048,
    "llama4_text": 131_072,
    "mimo_v2_flash": 131_072,
    "minimax_m2": 196_608,
    "ministral3": 262_144,
    "mistral": 131_072,
    "mixtral": 131_072,
    "nemotron_h": 4096,
    "qwen2": 32_768,
    "qwen2_moe": 32_768,
    "qwen3": 32_768,
    "qwen3_5_moe_text": 32_768,
    "qwen3_5_text": 32_768,
    "qwen3_moe": 32_768,
    "qwen3_next": 32_768,
    "whisper": 448,
}
# What a rotary embedding cannot be made without.
_ROPE_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "su": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "mrope": ("mrope_section",),
}
# Rope types that leave max_position_embeddings as it is.
_YARNS = ("yarn", "deepseek_yarn", "deepseek_llama_scaling")
_UNSCALED_ROPES = ("su", "longrope", "llama3", *_YARNS)


def _first_architecture(config: Config) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _identify(config: Config) -> tuple[str, Config]:
    """The model_type that decides, and the config of the text part."""
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise ValueError(f"config: model_type is {model_type!r}; it must be a string")
    architecture = _first_architecture(config)
    if model_type is None and not architecture:
        raise ValueError("config: it has neither model_type nor architectures, so the model cannot be recognised")
    if model_type in _WRAPPERS:
        text = config.get(_WRAPPERS[model_type])
        if not isinstance(text, dict):
            raise ValueError(f"config: model_type {model_type} has no {_WRAPPERS[model_type]}")
        inner, _unused = _identify(text)
        return inner, text
    if model_type in _FAMILIES:
        return str(model_type), config
    if (model_type, architecture) in _ALIASES:
        return _ALIASES[(model_type, architecture)], config
    if model_type is None and architecture in _ARCHITECTURES:
        return _ARCHITECTURES[architecture], config
    raise ValueError(
        f"config: model_type {model_type!r} (architecture {architecture or 'not given'}) is not a model that is known "
        "here; it is refused rather than guessed"
    )


def _context(fields: _Fields, family: Family, window: int | None) -> tuple[int | None, str]:
    """The longest context by the config: the smallest of its length keys, times a linear rope factor.

    window: one that was switched off, beyond which the model was not trained.
    """
    config = fields.config
    found: int | None = None
    key_of = ""
    own = "max_target_positions" if fields.model_type == "whisper" else "max_position_embeddings"
    if own in config and config[own] is None:
        raise ValueError(f"config: {own} is null; model_type {fields.model_type} wants an integer, or the key left out")
    for key in _CONTEXT_KEYS:
        if config.get(key) is None:
            continue
        value = fields.integer(key)
        if found is None or value < found:
            found, key_of = value, key
    if config.get("model_max_length"):
        found, key_of = fields.integer("model_max_length"), "model_max_length"
    if found is None:
        # What is asked for is planned: the default comes with the engine's version of transformers.
        fields.derived[own] = (
            f"the engine's default for model_type {fields.model_type} is {_POSITIONS[fields.model_type]}, and it "
            "refuses a longer max_model_len"
        )
        found, key_of = family.default(own), own
    if found is not None and window is not None and window < found:
        found, key_of = window, "sliding_window"
    if found is None or fields.model_type.startswith("gemma3"):
        return found, key_of
    return int(found * _rope_factor(config)), key_of


def _old_context(fields: _Fields, context: int | None) -> int | None:
    """The same as engines before 0.30 find it: yarn's factor counts, from the length before it was applied on.

    context: the longest context as it is found since.
    """
    ropes = [rope for rope in _ropes(fields.config) if _rope_type(rope) in _YARNS]
    if context is None or not ropes or fields.model_type.startswith("gemma3"):
        return context
    found = float(context)
    for rope in ropes:
        if _rope_type(rope) == "yarn":
            found = _rope_number(rope, "original_max_position_embeddings", context)
    return int(found * _rope_number(ropes[-1], "factor", 1.0))


def _ropes(config: Config) -> list[Config]:
    """The rotary embeddings of a config: one, or one for each kind of layer."""
    ropes = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(ropes, dict):
        return []
    return [entry for entry in ropes.values() if isinstance(entry, dict)] or [ropes]


def _check_ropes(fields: _Fields) -> None:
    for rope in _ropes(fields.config):
        kind = _rope_type(rope)
        missing = [key for key in _ROPE_KEYS.get(str(kind), ()) if key not in rope]
        if missing:
            raise ValueError(f"config: rope_parameters has no {missing[0]}, which rope_type {kind} needs")


def _rope_type(rope: Config) -> object:
    return rope.get("rope_type") or rope.get("type") or "default"


def _rope_factor(config: Config) -> float:
    factor = 1.0
    for rope in _ropes(config):
        if _rope_type(rope) in _UNSCALED_ROPES:
            continue
        factor = _rope_number(rope, "factor", factor if "factor" not in rope else 1.0)
    return factor


def _rope_number(rope: Config, key: str, default: float) -> float:
    value = rope.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"config: the {key} of rope_parameters is {value!r}; it must be a number above 0")
    return float(value)


def _default_context(fields: _Fields, context: int | None) -> int | None:
    """What the engine serves when it is asked for no length: with longrope, what the model was first trained for."""
    if not any(_rope_type(rope) == "longrope" for rope in _ropes(fields.config)):
        return context
    return fields.integer("original_max_position_embeddings", context)


def _modelopt_scheme(quantization: Config) -> str | None:
    inner = quantization.get("quantization")
    inner = inner if isinstance(inner, dict) else quantization
    scheme = (
        inner.get("kv_cache_scheme")
        or quantization.get("kv_cache_scheme")
        or inner.get("kv_cache_quant_algo")
        or quantization.get("kv_cache_quant_algo")
    )
    if isinstance(scheme, dict):
        if scheme.get("type") != "float":
            return None
        if scheme.get("num_bits") == 8 and scheme.get("dynamic") is False:
            return "fp8_e4m3"
        return "nvfp4" if scheme.get("num_bits") == 4 else None
    return {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}.get(str(scheme).lower()) if scheme else None


def _producer(quantization: Config) -> object:
    producer = quantization.get("producer")
    return producer.get("name") if isinstance(producer, dict) else None


def _cache_scheme(config: Config, text: Config) -> str | None:
    """The cache dtype that the checkpoint asks for when kv_cache_dtype is auto."""
    quantization = (
        config.get("quantization_config") or text.get("quantization_config") or config.get("compression_config")
    )
    if not isinstance(quantization, dict):
        return None
    method = str(quantization.get("quant_method", "")).lower().replace("_", "-")
    if method.startswith("modelopt") or _producer(quantization) == "modelopt":
        return _modelopt_scheme(quantization)
    if method == "compressed-tensors" and quantization.get("kv_cache_scheme") is not None:
        return "fp8"
    return None


def _draft_count(fields: _Fields, family: Family) -> int:
    """Layers of the built-in MTP head."""
    if family.mtp_key is None:
        return family.mtp_layers
    return _bounded(family.mtp_key, fields.integer(family.mtp_key, family.mtp_layers, minimum=0))


def _can_draft(fields: _Fields, family: Family) -> bool:
    """Whether the engine knows the family's MTP head; Nemotron-H only has one where the config says so."""
    if fields.model_type == "nemotron_h":
        return _draft_count(fields, family) > 0
    return family.mtp_key is not None or family.mtp_layers > 0


def _drafts(fields: _Fields, family: Family) -> tuple[Layer, ...]:
    """Caches of the built-in draft layers: full copies of an attention layer of the model."""
    count = _draft_count(fields, family)
    if count == 0:
        return ()
    if family.mla:
        one: Layer = (_latent(fields), _indexer(fields)) if fields.has("index_topk") else (_latent(fields),)
        return (one,) * count
    if fields.model_type == "mimo_v2_flash":
        # The engine runs the first of its draft layers, which is windowed.
        return ((_mimo_windowed(fields),),)
    if fields.model_type == "nemotron_h":
        types = _nemotron_types(fields, "mtp_hybrid_override_pattern", ("mtp_layers_block_type",))
        return tuple(_nemotron_layer(fields, family, kind) for kind in types)
    if family.hybrid:
        return ((_windowed(_heads(fields, family), None),),) * count
    return _alike(fields, family)[:1] * count


def settled(config: Config) -> tuple[Config, tuple[str, ...]]:
    """A config with what its config class works out when it is read, which hf_overrides do not change any more, and a
    sentence for every key that was left to the engine."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _WRAPPERS:
        key = _WRAPPERS[model_type]
        if not isinstance(config.get(key), dict):
            return config, ()
        part, assumptions = settled(config[key])
        return {**config, key: part}, assumptions
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        return config, ()
    family, fields = _FAMILIES[model_type], _Fields(config, model_type)
    count, types = config.get("num_hidden_layers"), config.get("layer_types")
    if isinstance(types, list) and isinstance(count, int) and len(types) != count and model_type != "nemotron_h":
        raise ValueError(f"config: layer_types has {len(types)} entries for {count} layers; one for each is needed")
    found = dict(config)
    if family.types is not None and types is None and fields.has("num_hidden_layers"):
        found["layer_types"] = family.types(fields, _layer_count(fields))
    if model_type in _DERIVED_HEADS and fields.has("num_attention_heads"):
        heads = _heads(fields, family)
        found.update(num_key_value_heads=heads.kv, head_dim=heads.size)
    return found, fields.assumptions


def merge_overrides(config: Config, overrides: Config) -> dict[str, Any]:
    """hf_overrides laid over a config, as vLLM does: a part that is a config of its own is merged, other dictionaries
    are replaced. rope_scaling and rope_parameters are two names of one thing."""
    merged = dict(config)
    for key, value in overrides.items():
        if key in _PARTS and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged_part(merged[key], value)
            continue
        if key in _ROPE_NAMES:
            merged = {name: old for name, old in merged.items() if name not in _ROPE_NAMES}
        merged[key] = value
    return merged


def _merged_part(part: Config, overrides: Config) -> dict[str, Any]:
    merged = dict(part)
    for key, value in overrides.items():
        name = next((name for name in _ROPE_NAMES if name in merged), key) if key in _ROPE_NAMES else key
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged_part(merged[name], value)
        else:
            merged[name] = value
    return merged


# Model types, as the config itself gives them, that the engine does not compute with float16.
_NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")


def refuses_float16(config: Config) -> bool:
    """Whether the engine does not compute with float16 for this model; a config that asks for it gets bfloat16."""
    return config.get("model_type") in _NO_FLOAT16


def _wanted_dtype(config: Config, text: Config) -> str | None:
    """The dtype that the config asks for, under its new or its old name."""
    for part in (config, text):
        for key in ("dtype", "torch_dtype"):
            if part.get(key) is not None:
                wanted = str(part[key])
                return None if wanted == "float16" and refuses_float16(config) else wanted
    return None


def _switched_off(fields: _Fields, family: Family) -> int | None:
    """The window that disable_sliding_window takes from a model, and which no request may be longer than then."""
    if fields.model_type == "mimo_v2_flash":
        raise ValueError("disable_sliding_window: the heads of windowed layers of model_type mimo_v2_flash need it")
    return _qwen_window(fields) if fields.model_type.startswith("qwen") else _window_size(fields, family)


def read_model(config: Config, windowless: bool = False) -> Model:
    """The model behind a config.json (as a dict, hf_overrides already laid over it).

    windowless: the engine was told to do without sliding windows.
    """
    model_type, text = _identify(config)
    family = _FAMILIES[model_type]
    fields = _Fields(text, model_type)
    window = _switched_off(fields, family) if windowless else None
    if windowless:
        fields.config = {**text, "sliding_window": None}
    layers = family.build(fields, family)
    _check_ropes(fields)
    context, context_key = _context(fields, family, window)
    if model_type == "whisper":
        query = kv = fields.integer("decoder_attention_heads")
    elif family.mla:
        query = fields.integer("num_attention_heads")
        kv = fields.integer("num_key_value_heads", query)
    else:
        heads = _heads(fields, family)
        query, kv = heads.query, heads.kv
    return Model(
        family=model_type,
        mla=family.mla,
        sparse=any(cache.kind == INDEXER for layer in layers for cache in layer),
        query_heads=query,
        kv_heads=kv,
        layers=layers,
        drafts=_drafts(fields, family),
        can_draft=_can_draft(fields, family),
        draft_count=_draft_count(fields, family),
        draft_key=None if family.mtp_key is None or fields.has(family.mtp_key) else family.mtp_key,
        context=context,
        old_context=_old_context(fields, context),
        default_context=_default_context(fields, context),
        context_key=context_key,
        model_max_length=text.get("model_max_length"),
        cache_scheme=_cache_scheme(config, text),
        encoder_tokens=fields.integer("max_source_positions") if model_type == "whisper" else 0,
        hybrid=family.hybrid and any(cache.kind == STATE for layer in layers for cache in layer),
        layer_name=("" if text is config else "language_model.") + "model.layers.{}." + family.attention,
        assumptions=fields.assumptions,
        refusal=fields.refusal,
        latent=_latent_shape(fields) if family.mla else None,
        computes_with=_wanted_dtype(config, text),
        dealt_width=fields.integer("intermediate_size", 2880) if model_type == "gpt_oss" else 0,
        expert_layers=tuple(family.experts(fields, len(layers))) if family.experts is not None else (),
        no_experts=family.no_experts,
    )


def with_every_indexer(model: Model) -> Model:
    """The model with an indexer on every layer, as planners without index sharing build it."""
    indexers = [cache for layer in model.layers for cache in layer if cache.kind == INDEXER]
    if not indexers:
        return model
    layers = tuple((layer[0], indexers[0]) for layer in model.layers)
    return Model(**{**model.__dict__, "layers": layers})
