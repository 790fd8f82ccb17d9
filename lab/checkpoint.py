#!/usr/bin/env python3
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the lab's model: a base checkpoint that promises an MTP layer, and the overlay that has it.

    python3 lab/checkpoint.py DEST_DIR [--seed N] [--heads N]

DEST_DIR/lab-base  DeepSeek-V3-shaped (MLA 512 + 64, mixture of experts, three layers), three shards,
                   tokenizer and chat template. Its config.json advertises one MTP layer, as the public
                   GLM-5.2 NVFP4 checkpoint does, and like that one it does not contain it.
DEST_DIR/lab-mtp   one more shard with that layer (model.layers.3.*), and the index of all four.

The files are real safetensors and the same bytes on every run. The weights are random but for three
places, which make the output worth looking at: the embeddings are orthogonal, the head holds the letter
pairs of a short English text, and the MTP layer passes the embedding through. So the model babbles
printable letters, what it says depends on every layer, and main model and draft often agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import struct
import typing as t
from pathlib import Path
from statistics import NormalDist

HIDDEN = 128
INTERMEDIATE = 256
MOE_INTERMEDIATE = 128
LAYERS = 3
DENSE_LAYERS = 1
HEADS = 4
EXPERTS = 4
Q_LORA_RANK = 64
KV_LORA_RANK = 512
NOPE_HEAD_DIM = 64
ROPE_HEAD_DIM = 64
V_HEAD_DIM = 64
MAX_POSITIONS = 8192

# What a pair of words that the text has is worth, and how far the layers may bend it: among the words
# that may follow, they choose.
PAIR_SCORE = 12.0
LAYER_STRENGTH = 0.8
# Large enough that attention picks a few earlier tokens: what was said changes what is said next.
QUERY_STRENGTH = 4.0

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

TEXT = """Four small machines share one model that none of them could hold alone. \
Each of them keeps a quarter of every layer, and after each layer they put their parts together. \
Memory is the thing that decides: count the bytes before you start, and nothing has to be killed later. \
A draft of the next word is cheap when a second layer has a good guess, \
and a wrong guess costs only a little. \
The wires between the nodes carry long frames, so that no answer waits for a short one. \
What was promised is measured, what was measured is written down, and what is written down can be trusted. \
If a machine goes away, say so; if a number does not fit, say which one; if all is well, say it once. \
Quiet fans, just a few lights, and the next letter comes from a row of very small numbers.
"""

# What the tokenizer keeps whole; GPT-2's splitting rule cuts this text in the same places.
PIECES = re.findall(r" ?[A-Za-z]+|[^\sA-Za-z]", TEXT)
WORDS = sorted({piece for piece in PIECES if len(piece) > 1})
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end|>",
)
# Token ids: the 256 bytes, the words, the special tokens.
BYTES = 256
FIRST_SPECIAL = BYTES + len(WORDS)
VOCABULARY = FIRST_SPECIAL + len(SPECIAL_TOKENS)
BOS, EOS, PAD = FIRST_SPECIAL, FIRST_SPECIAL + 1, FIRST_SPECIAL + 2
ASSISTANT = FIRST_SPECIAL + SPECIAL_TOKENS.index("<|assistant|>")

# A tensor: dtype, shape and its bytes.
Tensor = tuple[str, tuple[int, ...], bytes]


def bfloat16(value: float) -> bytes:
    """The two bytes of `value` as little-endian BF16, rounded to nearest even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return struct.pack("<H", bits >> 16)


def bfloat16_tensor(rows: t.Sequence[t.Sequence[float]]) -> Tensor:
    data = b"".join(bfloat16(value) for row in rows for value in row)
    return "BF16", (len(rows), len(rows[0])), data


class Noise:
    """Normally distributed weights, a function of seed and tensor name only.

    Every random byte picks one of 256 quantiles, so that millions of weights are two
    bytes.translate() calls and no loop.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        normal = NormalDist()
        self.quantiles = [normal.inv_cdf((index + 0.5) / 256) for index in range(256)]

    def __call__(self, name: str, shape: tuple[int, ...], deviation: float) -> Tensor:
        count = math.prod(shape)
        stream = hashlib.shake_256(f"{self.seed}:{name}".encode()).digest(count)
        table = [bfloat16(quantile * deviation) for quantile in self.quantiles]
        data = bytearray(2 * count)
        data[0::2] = stream.translate(bytes(pair[0] for pair in table))
        data[1::2] = stream.translate(bytes(pair[1] for pair in table))
        return "BF16", shape, bytes(data)


def hadamard(row: int, column: int) -> float:
    """Entry of the 128 x 128 Hadamard matrix: +1 or -1, rows orthogonal."""
    return -1.0 if bin(row & column).count("1") % 2 else 1.0


def token_id(piece: str) -> int:
    return ord(piece) if len(piece) == 1 else BYTES + WORDS.index(piece)


def word_pairs() -> dict[int, list[int]]:
    """Which tokens follow which in the text, in its order.

    An answer begins as one of the sentences does, and may end where a sentence ends.
    """
    followers: dict[int, list[int]] = {}
    stop = token_id(".")
    left = ASSISTANT
    for right in [*(token_id(piece) for piece in PIECES), EOS]:
        for previous in (left, ASSISTANT) if left == stop and right != EOS else (left,):
            seen = followers.setdefault(previous, [])
            if right not in seen:
                seen.append(right)
        left = right
    return followers


def directions() -> list[tuple[int, float]]:
    """Row and sign of every token's embedding.

    What the text is made of gets a row of its own; all other tokens share the same rows with the
    opposite sign, and so say the opposite of what those say.
    """
    own = sorted(word_pairs())
    if len(own) > HIDDEN:
        raise ValueError(f"the text has {len(own)} different pieces, {HIDDEN} orthogonal rows is all there is")
    rows = {token: (row, 1.0) for row, token in enumerate(own)}
    return [rows.get(token, (token % HIDDEN, -1.0)) for token in range(VOCABULARY)]


def embeddings() -> Tensor:
    return bfloat16_tensor([[sign * hadamard(row, column) for column in range(HIDDEN)] for row, sign in directions()])


def head() -> Tensor:
    """Rows such that row j times the embedding of token i is PAIR_SCORE if the text has the pair (i, j)."""
    rows = directions()
    weights = [[0.0] * HIDDEN for _ in range(VOCABULARY)]
    for left, followers in word_pairs().items():
        row, sign = rows[left]
        for right in followers:
            for column in range(HIDDEN):
                weights[right][column] += sign * PAIR_SCORE / HIDDEN * hadamard(row, column)
    return bfloat16_tensor(weights)


def ones(count: int) -> Tensor:
    return "BF16", (count,), bfloat16(1.0) * count


def attention(noise: Noise, prefix: str, heads: int) -> dict[str, Tensor]:
    def linear(name: str, outputs: int, inputs: int, strength: float = 1.0) -> tuple[str, Tensor]:
        full = f"{prefix}.self_attn.{name}.weight"
        return full, noise(full, (outputs, inputs), strength / math.sqrt(inputs))

    return dict(
        [
            linear("q_a_proj", Q_LORA_RANK, HIDDEN),
            (f"{prefix}.self_attn.q_a_layernorm.weight", ones(Q_LORA_RANK)),
            linear("q_b_proj", heads * (NOPE_HEAD_DIM + ROPE_HEAD_DIM), Q_LORA_RANK, QUERY_STRENGTH),
            linear("kv_a_proj_with_mqa", KV_LORA_RANK + ROPE_HEAD_DIM, HIDDEN),
            (f"{prefix}.self_attn.kv_a_layernorm.weight", ones(KV_LORA_RANK)),
            linear("kv_b_proj", heads * (NOPE_HEAD_DIM + V_HEAD_DIM), KV_LORA_RANK),
            linear("o_proj", HIDDEN, heads * V_HEAD_DIM, LAYER_STRENGTH),
            (f"{prefix}.input_layernorm.weight", ones(HIDDEN)),
            (f"{prefix}.post_attention_layernorm.weight", ones(HIDDEN)),
        ]
    )


def feed_forward(noise: Noise, prefix: str, width: int) -> dict[str, Tensor]:
    shapes = {"gate_proj": (width, HIDDEN), "up_proj": (width, HIDDEN), "down_proj": (HIDDEN, width)}
    tensors = {}
    for name, shape in shapes.items():
        strength = LAYER_STRENGTH if name == "down_proj" else 1.0
        full = f"{prefix}.{name}.weight"
        tensors[full] = noise(full, shape, strength / math.sqrt(shape[1]))
    return tensors


def layer(noise: Noise, index: int, heads: int = HEADS) -> dict[str, Tensor]:
    prefix = f"model.layers.{index}"
    tensors = attention(noise, prefix, heads)
    if index < DENSE_LAYERS:
        tensors.update(feed_forward(noise, f"{prefix}.mlp", INTERMEDIATE))
        return tensors
    gate = f"{prefix}.mlp.gate.weight"
    tensors[gate] = noise(gate, (EXPERTS, HIDDEN), 1.0 / math.sqrt(HIDDEN))
    tensors[f"{prefix}.mlp.gate.e_score_correction_bias"] = (
        "F32",
        (EXPERTS,),
        struct.pack(f"<{EXPERTS}f", *[0.0] * EXPERTS),
    )
    for expert in range(EXPERTS):
        tensors.update(feed_forward(noise, f"{prefix}.mlp.experts.{expert}", MOE_INTERMEDIATE))
    tensors.update(feed_forward(noise, f"{prefix}.mlp.shared_experts", MOE_INTERMEDIATE))
    return tensors


def mtp_layer(noise: Noise, heads: int = HEADS) -> dict[str, Tensor]:
    """The layer that drafts. Embedding and head are the main model's, as in GLM-5.2's overlay."""
    prefix = f"model.layers.{LAYERS}"
    # Left half: the new token's embedding, passed through; right half: the last hidden state, ignored.
    passing = [[1.0 if row == column else 0.0 for column in range(2 * HIDDEN)] for row in range(HIDDEN)]
    return {
        f"{prefix}.eh_proj.weight": bfloat16_tensor(passing),
        f"{prefix}.enorm.weight": ones(HIDDEN),
        f"{prefix}.hnorm.weight": ones(HIDDEN),
        f"{prefix}.shared_head.norm.weight": ones(HIDDEN),
        **layer(noise, LAYERS, heads),
    }


def config(heads: int = HEADS) -> dict[str, t.Any]:
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "first_k_dense_replace": DENSE_LAYERS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "kv_lora_rank": KV_LORA_RANK,
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": MOE_INTERMEDIATE,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": heads,
        "num_experts_per_tok": 2,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": heads,
        "num_nextn_predict_layers": 1,
        "pad_token_id": PAD,
        "q_lora_rank": Q_LORA_RANK,
        "qk_nope_head_dim": NOPE_HEAD_DIM,
        "qk_rope_head_dim": ROPE_HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": V_HEAD_DIM,
        "vocab_size": VOCABULARY,
    }


def byte_symbols() -> list[str]:
    """The printable characters by which byte-level tokenizers name the 256 bytes (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [""] * BYTES
    for byte in printable:
        symbols[byte] = chr(byte)
    for position, byte in enumerate(byte for byte in range(BYTES) if byte not in printable):
        symbols[byte] = chr(0x100 + position)
    return symbols


def tokenizer() -> dict[str, t.Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    symbols = byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in enumerate(symbols)}
    for position, word in enumerate(WORDS):
        vocabulary["".join(symbols[byte] for byte in word.encode())] = BYTES + position
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": FIRST_SPECIAL + position,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for position, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # Known words are taken whole, everything else byte by byte.
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def tokenizer_config() -> dict[str, t.Any]:
    return {
        "bos_token": SPECIAL_TOKENS[BOS - FIRST_SPECIAL],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL_TOKENS[EOS - FIRST_SPECIAL],
        "model_max_length": MAX_POSITIONS,
        "pad_token": SPECIAL_TOKENS[PAD - FIRST_SPECIAL],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def generation_config() -> dict[str, t.Any]:
    # Without max_new_tokens a client that names no limit would get a whole context of babble. Greedy,
    # because vLLM 0.32.0 on CPU samples garbage next to a draft model when the temperature is not 0.
    return {
        "bos_token_id": BOS,
        "do_sample": False,
        "eos_token_id": EOS,
        "max_new_tokens": 128,
        "pad_token_id": PAD,
        "temperature": 0.0,
    }


def safetensors(tensors: t.Mapping[str, Tensor]) -> bytes:
    """The bytes of one safetensors file: header length, JSON header padded to 8 bytes, data."""
    header: dict[str, t.Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def index(shards: t.Mapping[str, t.Mapping[str, Tensor]]) -> dict[str, t.Any]:
    return {
        "metadata": {"total_size": sum(len(data) for tensors in shards.values() for _, _, data in tensors.values())},
        "weight_map": {name: shard for name, shard in sorted((n, s) for s, tensors in shards.items() for n in tensors)},
    }


def json_text(value: t.Mapping[str, t.Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write(folder: Path, files: t.Mapping[str, bytes]) -> None:
    """Every file by temp file and rename: a reader, or a hardlink to an older run, never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(data)
        os.replace(partial, folder / name)


def build(seed: int, heads: int = HEADS) -> dict[str, dict[str, bytes]]:
    """All files: {folder: {name: bytes}}."""
    noise = Noise(seed)
    first = {"model.embed_tokens.weight": embeddings(), **layer(noise, 0, heads)}
    last = {**layer(noise, 2, heads), "model.norm.weight": ones(HIDDEN), "lm_head.weight": head()}
    base_shards = {
        "model-00001-of-00003.safetensors": first,
        "model-00002-of-00003.safetensors": layer(noise, 1, heads),
        "model-00003-of-00003.safetensors": last,
    }
    overlay_shards = {"model-00004-of-00004.safetensors": mtp_layer(noise, heads)}
    base = {name: safetensors(tensors) for name, tensors in base_shards.items()}
    base["model.safetensors.index.json"] = json_text(index(base_shards))
    base["config.json"] = json_text(config(heads))
    base["generation_config.json"] = json_text(generation_config())
    base["tokenizer.json"] = json_text(tokenizer())
    base["tokenizer_config.json"] = json_text(tokenizer_config())
    overlay = {name: safetensors(tensors) for name, tensors in overlay_shards.items()}
    overlay["model.safetensors.index.json"] = json_text(index({**base_shards, **overlay_shards}))
    return {"lab-base": base, "lab-mtp": overlay}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the lab's base checkpoint and its MTP overlay.")
    parser.add_argument("destination", type=Path, help="the folder that gets lab-base and lab-mtp")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other weights (default: %(default)s)")
    # Every rank has some: tensor parallelism over more ranks than these needs more of them.
    parser.add_argument("--heads", type=int, default=HEADS, help="attention heads (default: %(default)s)")
    arguments = parser.parse_args()
    for folder, files in build(arguments.seed, arguments.heads).items():
        write(arguments.destination / folder, files)
        size = sum(len(data) for data in files.values())
        print(f"{arguments.destination / folder}: {len(files)} files, {size:,} B")


if __name__ == "__main__":
    main()
