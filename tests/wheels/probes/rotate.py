# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By how much RotaryEmbedding on CPU misses its own plain PyTorch, for heads in a dimension of their own or none."""

import importlib
import json
import typing as t

torch: t.Any = importlib.import_module("torch")
config: t.Any = importlib.import_module("vllm.config")
importlib.import_module("vllm.platforms").current_platform.import_kernels()
base: t.Any = importlib.import_module("vllm.model_executor.layers.rotary_embedding.base")

HEADS, PLAIN, ROTARY, TOKENS = 4, 64, 64, 5
torch.manual_seed(0)
with config.set_current_vllm_config(config.VllmConfig()):
    rotary = base.RotaryEmbedding(ROTARY, ROTARY, 128, 10000.0, False, torch.float32)
positions = torch.arange(3, 3 + TOKENS)
# Latent attention rotates the last part of each head, and one key for all heads.
whole = torch.randn(TOKENS, HEADS, PLAIN + ROTARY)
key = torch.randn(TOKENS, 1, ROTARY)
latent = whole[..., PLAIN:]
flat = latent.reshape(TOKENS, HEADS * ROTARY)
errors = {}
for name, query in {"latent": latent, "flat": flat}.items():
    wanted = rotary.forward_native(positions, query.clone(), key.clone())
    seen = rotary.forward_cpu(positions, query, key.clone())
    assert [tensor.shape for tensor in seen] == [tensor.shape for tensor in wanted]
    # Some callers take no answer: it works in place.
    assert torch.equal(seen[0], query)
    errors[name] = max(float((one - other).abs().max()) for one, other in zip(seen, wanted))
print("PROBE " + json.dumps(errors))
