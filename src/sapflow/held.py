"""A directory that one process has at a time: a lock that ends with the process, and whose it is."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO


class HeldElsewhere(Exception):
    """Another process has the directory."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder
        """Its process id, as far as it is known."""


def hold(directory: Path) -> IO[bytes]:
    """Have a directory, made if it is not there, until what is returned is closed. Raises HeldElsewhere, OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read(32).decode("ascii", "replace").strip() or "unknown"
        lock.close()
        raise HeldElsewhere(holder) from None
    # Whose it is is for people only: a disk without room for these bytes is no reason not to go on.
    with suppress(OSError):
        lock.truncate(0)
        lock.write(b"%d\n" % os.getpid())
        lock.flush()
    return lock
