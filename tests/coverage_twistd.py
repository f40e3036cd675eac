"""
A plugin of coverage: it writes what was measured before a process ends itself by a signal.

``twistd`` ends by the signal that stopped it, so no exit handler runs, and all that was measured in it would be lost.
"""

import os

from coverage import Coverage


def coverage_init(_registry: object, _options: object) -> None:
    """Called by coverage at the start of every measured process, children included."""
    kill = os.kill

    def save_and_kill(pid: int, signal: int) -> None:
        measuring = Coverage.current()
        if pid == os.getpid() and measuring is not None:
            measuring.save()
        kill(pid, signal)

    os.kill = save_and_kill
