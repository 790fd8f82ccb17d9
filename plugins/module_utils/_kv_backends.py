# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Attention backends: the block sizes that their kernels run, and the bytes of one token.

Which one the engine takes is in `_kv_kernels`. Private to this collection.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import Dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import Cache, Model
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import Request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import FULL, INDEXER, MLA, SLIDING

PLAIN_BYTES = 2


@dataclass(frozen=True)
class Backend:
    """One attention backend of vLLM.

    fixed: block sizes its kernels run, and no others; multiple: it runs every multiple of this (0: none);
    implementation: the class that DCP errors name; dcp_since: the version in which it learnt to return the softmax LSE,
    which DCP needs (None: it never did); interleaves_since: the version in which it can draft with a DCP interleave
    above one;
    row_page: rows of one page of the kernel, where blocks must be whole pages apart (0: no such rule);
    packed_rows: the same for a packed cache dtype, in a kernel that reads other caches row by row;
    layouts: of the cache that it reads (none: every one); since: the version in whose lists it first is.
    """

    name: str
    implementation: str
    multiple: int = 0
    fixed: tuple[int, ...] = ()
    dcp_since: tuple[int, int] | None = None
    interleaves_since: tuple[int, int] | None = None
    row_page: int = 0
    packed_rows: int = 0
    layouts: tuple[str, ...] = ()
    since: tuple[int, int] = (0, 13)

    @property
    def smallest(self) -> int:
        """The smallest block that a kernel of this backend runs."""
        return min(self.fixed) if self.fixed else self.multiple

    def has_dcp(self, dialect: Dialect) -> bool:
        """Whether DCP works with this backend in a version."""
        return self.dcp_since is not None and dialect.version >= self.dcp_since

    def has_interleaved_drafts(self, dialect: Dialect) -> bool:
        """Whether drafts and a DCP interleave above one work together in a version."""
        return self.interleaves_since is not None and dialect.version >= self.interleaves_since

    @property
    def spoken_sizes(self) -> str:
        """The kernel's block sizes as the engine prints them."""
        return ", ".join(str(size) for size in self.fixed) or f"MultipleOf({self.multiple})"

    def runs(self, block_size: int) -> bool:
        """Whether a kernel can run blocks of this size, whole or cut into equal parts."""
        return any(block_size % size == 0 for size in self.fixed or (self.multiple,))

    def window_block(self, block_size: int) -> int:
        """The largest block a kernel runs that is not above block_size, or the smallest it runs at all."""
        sizes = self.fixed or (max(self.multiple, block_size // self.multiple * self.multiple),)
        return max([size for size in sizes if size <= block_size] or [min(sizes)])


BF16 = ("auto", "float16", "bfloat16")
_ROWS = (
    Backend("FLASH_ATTN", "FlashAttentionImpl", multiple=16, dcp_since=(0, 13)),
    Backend("FLASHINFER", "FlashInferImpl", fixed=(16, 32, 64), dcp_since=(0, 13)),
    Backend("TRITON_ATTN", "TritonAttentionImpl", multiple=16),
    Backend("FLASH_ATTN_DIFFKV", "FlashAttentionDiffKVImpl", multiple=16, dcp_since=(0, 20), since=(0, 20)),
    Backend("TRITON_ATTN_DIFFKV", "TritonAttentionDiffKVImpl", multiple=16, since=(0, 24)),
    Backend("FLEX_ATTENTION", "FlexAttentionImpl", multiple=16, layouts=("LBNHC",)),
    Backend("CPU_ATTN", "CPUAttentionBackendImpl", multiple=32, layouts=("LBHNC",)),
    Backend("CPU_MLA", "CPUMLAImpl", fixed=(16,), since=(0, 28)),
    Backend("AMX_MLA", "AMXMLAImpl", multiple=32, since=(0, 30)),
    Backend("TRITON_MLA", "TritonMLAImpl", multiple=16, dcp_since=(0, 13)),
    Backend("FLASH_ATTN_MLA", "FlashAttnMLAImpl", multiple=16, dcp_since=(0, 13)),
    Backend("FLASHMLA", "FlashMLAImpl", fixed=(64,), dcp_since=(0, 13)),
    Backend("CUTLASS_MLA", "CutlassMLAImpl", fixed=(128,), dcp_since=(0, 13)),
    Backend("FLASHINFER_MLA", "FlashInferMLAImpl", fixed=(32, 64), dcp_since=(0, 26)),
    Backend(
        "TOKENSPEED_MLA",
        "TokenspeedMLAImpl",
        fixed=(32, 64),
        dcp_since=(0, 26),
        interleaves_since=(0, 32),
        since=(0, 24),
    ),
    Backend(
        "FLASH_ATTN_MLA_SPARSE",
        "FlashAttnMLASparseImpl",
        multiple=64,
        row_page=1,
        since=(0, 26),
    ),
    Backend(
        "FLASHMLA_SPARSE",
        "FlashMLASparseImpl",
        multiple=64,
        dcp_since=(0, 30),
        interleaves_since=(0, 30),
        row_page=1,
        packed_rows=64,
    ),
    Backend(
        "FLASHINFER_MLA_SPARSE",
        "FlashInferMLASparseImpl",
        multiple=32,
        dcp_since=(0, 26),
        row_page=32,
        since=(0, 20),
    ),
    Backend(
        "FLASHINFER_MLA_SPARSE_SM120",
        "FlashInferMLASparseSM120Impl",
        multiple=64,
        row_page=64,
        since=(0, 24),
    ),
    Backend(
        "FLASHINFER_MLA_SPARSE_SM90",
        "FlashInferMLASparseSM90Impl",
        multiple=64,
        row_page=1,
        since=(0, 30),
    ),
    Backend(
        "FLASH_ATTN_MLA_SPARSE_FA4",
        "FlashAttnMLASparseFA4Impl",
        multiple=64,
        dcp_since=(0, 33),
        row_page=64,
        since=(0, 33),
    ),
    Backend("B12X_MLA_SPARSE", "B12xMLASparseImpl", multiple=64, dcp_since=(0, 24)),
)
BACKENDS: dict[str, Backend] = {row.name: row for row in _ROWS}
_INDEXER_BLOCK = 64
# The block size that the engine begins with.
_FIRST_BLOCK = 16

FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")
# Opaque rows of sparse MLA: bytes of one token.
ROW_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
# Before, only full attention counted packed elements, and all but windows: the others counted one byte for each.
_PACKS_EVERY_NVFP4, _PACKS_EVERY_INT4 = (0, 24), (0, 28)
_FORK_ROW_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 368}


def usual_backend(request: Request, backend: Backend) -> Backend:
    """What a rank without layers takes for its attention: the kernel that models of no special shape have."""
    return BACKENDS["CPU_ATTN"] if request.device == "cpu" and backend.name == "TRITON_ATTN_DIFFKV" else backend


def _forced_block(request: Request, model: Model) -> int:
    """What 0.13 makes of the block size of MLA before it chooses a kernel: what the likeliest one runs."""
    size, name = request.block_size or _FIRST_BLOCK, request.attention_backend
    hopper = request.compute_capability is not None and request.compute_capability[0] == 9
    if model.sparse:
        return _INDEXER_BLOCK
    step = 1
    if name == "CUTLASS_MLA" or (name is None and request.blackwell):
        step = 128
    elif hopper and name in (None, "FLASHMLA") or (name == "FLASHINFER_MLA" and size != 32):
        step = 64
    return size if size % step == 0 else step


def block_size_of(request: Request, model: Model, backend: Backend, dialect: Dialect) -> int:
    """Tokens of one block: what was asked for, or what the backend of the model prefers to 16."""
    if request.device == "cpu":
        if backend.name == "CPU_MLA":
            return 16
        return request.block_size or 128
    if model.mla and dialect.version < (0, 20):
        return _forced_block(request, model)
    if request.block_size is not None:
        return request.block_size
    if model.sparse:
        return _INDEXER_BLOCK
    return _FIRST_BLOCK if backend.runs(_FIRST_BLOCK) else backend.smallest


def plain_bytes(request: Request) -> int:
    """Bytes of an element that is stored as the model computes with it."""
    return 4 if request.dtype in ("float", "float32") else PLAIN_BYTES


def token_bytes(cache: Cache, heads: int, dtype: str, dialect: Dialect, auto_bytes: int) -> int:
    """Bytes of one token in one layer of one rank.

    heads: KV heads of this rank; auto_bytes: of an element where *dtype* is auto. Formulae: (K + V) * heads * D;
    MLA: its one vector; indexer: bytes as they are.
    """
    if cache.kind == INDEXER:
        return cache.key
    if cache.kind == MLA and dtype in ROW_BYTES:
        return (_FORK_ROW_BYTES if dialect.name == "dark-devotion" else ROW_BYTES)[dtype]
    elements = cache.key + cache.value
    if dtype in FP8:
        return heads * elements
    if dtype == "nvfp4" and (cache.kind == FULL or dialect.version >= _PACKS_EVERY_NVFP4):
        return heads * (elements // 2 + elements // 16)
    if dtype == "int4_per_token_head" and (cache.kind != SLIDING or dialect.version >= _PACKS_EVERY_INT4):
        return heads * (cache.key // 2 + cache.value // 2 + 8)
    if dtype == "nvfp4":
        return heads * elements
    if dtype.endswith("per_token_head"):
        return heads * (elements + 8)
    return heads * elements * (auto_bytes if dtype == "auto" else PLAIN_BYTES)


def strides(cache: Cache, backend: Backend, size: int, dtype: str, request: Request) -> tuple[int, int]:
    """What the distance of blocks must be a multiple of: bytes, and rows of a kernel's largest block (0: no such rule).

    size: bytes of one token.
    """
    if cache.kind == INDEXER:
        return 1, _INDEXER_BLOCK
    if backend.packed_rows and dtype in ROW_BYTES and not request.blackwell:
        return 1, backend.packed_rows
    if backend.row_page:
        return backend.row_page * size, 0
    return 1, max(backend.fixed or (0,))


def row_stride(cache: Cache, backend: Backend, size: int, dtype: str, request: Request) -> int:
    """What the distance of blocks must be a multiple of in 0.31: one token's row, where sparse kernels count in rows.

    size: bytes of one token.
    """
    if cache.kind != MLA:
        return 1
    flat = backend.name == "FLASHMLA_SPARSE" and (dtype not in ROW_BYTES or request.blackwell)
    return size if flat or backend.name == "FLASHINFER_MLA_SPARSE" else 1


# What is read by layers that do not care, most preferred first.
_EVERY_LAYOUT = ("LBNHC", "LBHNC", "BLNHC", "BLHNC", "BHLNC", "LHBNC")


def layouts_of(backend: Backend, attends: bool, request: Request) -> tuple[str, ...]:
    """The layouts that a rank says it can run. attends: it has layers of the backend."""
    if not attends:
        return _EVERY_LAYOUT
    if backend.name == "FLASHINFER" and request.blackwell:
        return ("LBHNC", "BLHNC")
    return backend.layouts or _EVERY_LAYOUT


def rank_heads(cache: Cache, tensor_parallel_size: int) -> int:
    """KV heads of one rank: the heads dealt out, one at least; the vector of MLA is on every rank."""
    if cache.kind in (MLA, INDEXER):
        return 1
    return max(1, cache.heads // tensor_parallel_size)
