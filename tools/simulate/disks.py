"""A simulated host's disk: the real files, but slow, full or failing when a fault says so.

What a storage thread would do is done at once, after and before a time that is virtual. A process that dies meanwhile
has written all of it or nothing: LMDB's transactions are whole (tools/crashes looks at what a torn write leaves). A
sync that fails after all was written is told as a failure, as a kernel would.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Literal

import trio
from attrs import define

from meter.spool import SpoolFull
from sapflow.errors import StorageError

Fault = Literal["", "full", "write", "sync"]
"""No room; a write that fails; a sync that fails though all was written."""

STORAGE = ("storage", "spool")
"""Kinds of threads whose work is on the disk that fails; others only read."""


@define
class Disk:
    """How long its writes take, and whether they fail."""

    usual_s: float = 0.002
    """What a write takes, when nothing is wrong."""
    write_s: float = 0.002
    fault: Fault = ""
    writes: int = 0
    failures: int = 0

    def mend(self) -> None:
        """As it was at first."""
        self.write_s, self.fault = self.usual_s, ""


async def work_on(disk: Disk, kind: str, work: Callable[[], Any]) -> Any:
    """Do a thread's work on this disk. Raises StorageError when it fails."""
    if kind not in STORAGE:
        await trio.sleep(disk.write_s / 4)
        return work()
    await trio.sleep(disk.write_s * 0.9)
    if disk.fault in ("full", "write"):
        disk.failures += 1
        raise _failure(kind, errno.ENOSPC if disk.fault == "full" else errno.EIO)
    disk.writes += 1
    done = work()
    await trio.sleep(disk.write_s * 0.1)
    if disk.fault == "sync":
        disk.failures += 1
        raise _failure(kind, errno.EIO)
    return done


def _failure(kind: str, number: int) -> StorageError:
    full = kind == "spool" and number == errno.ENOSPC
    return (SpoolFull if full else StorageError)(f"simulated: {os.strerror(number)}")
