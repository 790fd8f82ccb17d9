# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two ranks make the groups of vLLM that ask for a message queue, and rank 0 says which of them got one."""

import importlib
import json
import os
import socket
import typing as t

torch: t.Any = importlib.import_module("torch")
mp: t.Any = importlib.import_module("torch.multiprocessing")


def rank_main(rank: int, port: int) -> None:
    config: t.Any = importlib.import_module("vllm.config")
    parallel_state: t.Any = importlib.import_module("vllm.distributed.parallel_state")
    with config.set_current_vllm_config(config.VllmConfig()):
        parallel_state.init_distributed_environment(2, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        seen = {}
        for name in ("tp", "dcp", "other"):
            group = parallel_state.init_model_parallel_group(
                [[0, 1]],
                rank,
                "gloo",
                use_message_queue_broadcaster=True,
                group_name=name,
                use_device_communicator=False,
            )
            said = group.broadcast_object({"from": 0} if rank == 0 else None, src=0)
            seen[name] = {"queue": group.mq_broadcaster is not None, "said": said}
    if rank == 0:
        print("PROBE " + json.dumps(seen), flush=True)
    # Rank 0 must not be gone while the other still reads, and the queues' threads would hold both.
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    mp.spawn(rank_main, args=(number,), nprocs=2)
