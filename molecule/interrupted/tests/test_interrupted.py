# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml is killed in the middle of one role after the other, each time a little further.

That a run converges from what such a run leaves behind is shown twice: each run here has to get past the place
where the one before was killed, and the default scenario converges after the last.
"""

from __future__ import annotations

import pytest

from lab.play import play_until

# Seconds into the role, so that its changes are under way.
PLACES = [
    ("os_prune", 1.0),
    ("fabric", 2.0),
    ("runtime", 5.0),
    ("runtime", 15.0),
    ("ray_cluster", 3.0),
    ("vllm_serve", 12.0),
]


@pytest.mark.parametrize(("role", "seconds"), PLACES)
def test_the_next_run_gets_past_an_interrupted_one(role: str, seconds: float) -> None:
    text = play_until("sparkrig.serving.site", role, seconds)
    assert "fatal:" not in text
    assert "UNREACHABLE" not in text
