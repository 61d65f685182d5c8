"""A log's file comes into being whole, or not at all: LMDB writes its first two pages without a sync between.

A loss of power then would leave a file that is none of LMDB's, which nobody could open, and nobody may throw away.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lmdb

from phloem.engine.length import DATA

NEW = "new"
"""Where the file is made; what is there from an attempt before is of no use."""


def create(directory: Path) -> None:
    """Make an empty log's file, if there is none, and sync it. Raises lmdb.Error, OSError."""
    if (directory / DATA).exists():
        return
    new = directory / NEW
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    with lmdb.open(str(new), map_size=1 << 20) as env:
        env.sync(True)
    sync(new / DATA)
    (new / DATA).rename(directory / DATA)
    sync(directory)
    shutil.rmtree(new)


def sync(path: Path) -> None:
    """Have a file's bytes, or a directory's names, on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
