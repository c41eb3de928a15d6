"""A folder of brought code says that somebody runs from it: whoever does holds a shared lock on the folder itself.

`cluster.preflight.code` removes old ones, and asks by trying for the exclusive lock. The kernel lets a lock go with the
process that holds it, however it ends. Standard library only: the supervisor imports this.
"""

from __future__ import annotations

import fcntl
import os


def hold_code(root: str) -> None:
    """Keep the folder of code `root` for as long as this process lives; "" is nobody's folder.

    Children share the lock as long as they keep the descriptor, which those that run another program do not. Where it
    cannot be had (a file system without locks) nothing is said: there nobody gets the exclusive one either.
    """
    if not root:
        return
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # Whoever tries for the exclusive one lets go in a moment. The descriptor stays open: it holds the lock.
        fcntl.flock(folder, fcntl.LOCK_SH)
    except OSError:
        os.close(folder)
