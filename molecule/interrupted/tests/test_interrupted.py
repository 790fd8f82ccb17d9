# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml is killed in the middle of one task after the other, each time a little further.

That a run converges from what such a run leaves behind is shown twice: each run here has to get past the place
where the one before was killed, and the default scenario converges after the last.
"""

from __future__ import annotations

import pytest

from lab.play import play_until

# Seconds into the task, so that its changes are under way.
PLACES = [
    ("os_prune : Stop and mask", 1.0),
    ("fabric : Bring the rails up", 2.0),
    ("runtime : Have the tree on every node", 5.0),
    ("runtime : Have the tree on every node", 15.0),
    ("ray_cluster : follow | Wait until the head", 1.0),
    ("vllm_serve : engine | Wait until the engine", 10.0),
]


@pytest.mark.parametrize(("task", "seconds"), PLACES)
def test_the_next_run_gets_past_an_interrupted_one(task: str, seconds: float) -> None:
    text = play_until("sparkrig.serving.site", task, seconds)
    assert "fatal:" not in text
    assert "UNREACHABLE" not in text
