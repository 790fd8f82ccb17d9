# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of Ray, side by side with the Ray that the runtime has."""

from __future__ import annotations

import os
import subprocess

from ansible_collections.sparkrig.serving.plugins.module_utils._ray import OBJECT_STORE_MINIMUM_BYTES

CODE = """
import ray._private.ray_constants as constants, ray._private.services as services
from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME
from ray._raylet import persist_port
print(constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES)
services.start_ray_process, services.start_api_server
"""


def test_the_minimum_of_the_object_store_is_rays_own_and_the_launcher_finds_its_names() -> None:
    done = subprocess.run(
        [os.environ["SPARKRIG_ORACLE_PYTHON"], "-c", CODE], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == OBJECT_STORE_MINIMUM_BYTES
