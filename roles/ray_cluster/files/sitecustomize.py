# Managed by sparkrig.serving. Changes are overwritten.
# Every Python process of the rig writes what its threads do when it gets SIGUSR2, so that one that stands still can be
# asked why without being ended. PYTHONPATH of the rig's units leads here.
import contextlib
import faulthandler
import os
import signal

with contextlib.suppress(OSError, ValueError):
    _stacks = os.open(f"/run/sparkrig/stacks/{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    faulthandler.register(signal.SIGUSR2, file=_stacks, all_threads=True)
