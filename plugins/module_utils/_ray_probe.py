# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a living Ray cluster for its nodes.

Private to the collection.
"""

from __future__ import annotations

import os
import socket
import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._ray import (
    NODE_TABLE_SCRIPT,
    TOKEN_FILE,
    TOKEN_VARIABLE,
    ClusterState,
    compare_table,
    parse_node_table,
    token_in,
)

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# gRPC would send even a request to the next machine through a proxy that the shell happens to have.
_NO_PROXY = {name: "" for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY")}

# What a head says to a process that cannot show its secret.
_REFUSED = "InvalidAuthToken"

# The option `ray` of a module that asks a cluster.
RAY_OPTION: Mapping[str, t.Any] = {
    "type": "dict",
    "options": {
        "address": {"type": "str", "required": True},
        "nodes": {"type": "dict", "required": True},
        "python": {"type": "path", "default": "/opt/sparkrig/current/bin/python"},
    },
}


def ray_identity(token_file: str = TOKEN_FILE) -> dict[str, str]:
    """The variables with which this node shows the cluster that it belongs to it."""
    try:
        with open(token_file, encoding="utf-8") as stream:
            token = token_in(stream.read())
    except FileNotFoundError:
        token = None
    return {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", TOKEN_VARIABLE: token}


def probe_ray(
    run_command: Callable[..., tuple[int, str, str]],
    python: str,
    address: str,
    expected: Mapping[str, str],
    token_file: str = TOKEN_FILE,
) -> tuple[ClusterState | None, str]:
    """(state, "") or (None, why there is none). *run_command* is that of an AnsibleModule."""
    host, _colon, port = address.rpartition(":")
    try:
        # Ray itself would try for 15 seconds where nothing listens.
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        return None, f"Ray's GCS at {address} does not answer: {error.strerror or error}"
    environment = {**_NO_PROXY, **ray_identity(token_file)}
    try:
        code, out, err = run_command([python, "-c", NODE_TABLE_SCRIPT, address], environ_update=environment)
    except OSError as error:
        return None, f"{python} cannot be run: {error.strerror or error}"
    if code != 0 and _REFUSED in out + err:
        has = "is not that of the head" if os.path.exists(token_file) else "is missing"
        return None, f"Ray's GCS at {address} refuses this node: the secret in {token_file} {has}"
    if code != 0:
        last = (err.strip().splitlines() or ["no word"])[-1]
        return None, f"Ray's table of nodes at {address} cannot be read: {last}"
    try:
        return compare_table(parse_node_table(out), expected), ""
    except ValueError as error:
        return None, str(error)
