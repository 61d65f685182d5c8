"""LMDB's environment of the embedded log: opened and opened again, one that writes, any that read.

What LMDB and the disk say becomes a StorageError that says what to do. What is stored, and where, is known elsewhere.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from phloem.engine.creating import create, sync
from phloem.engine.layout import TABLES, Tables
from phloem.engine.length import ADVICE, SyncedLength
from sapflow.errors import StorageError

MAX_READERS = 126
_DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError, struct.error)


class Environment:
    """The file in `path`. Raises StorageError when it cannot be opened."""

    def __init__(self, path: Path, map_bytes: int) -> None:
        self.path = path
        self._map_bytes = map_bytes
        self._readers = 0
        self._gate = threading.Condition()
        self._length = SyncedLength(path)
        try:
            self._env = self._open()
        except BaseException:
            self._length.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._env.close()
        self._length.close()

    def reopen(self) -> None:
        """After a StorageError: start again from what is durable. Raises StorageError.

        Waits for reads that are under way, and holds back others: LMDB's pages vanish when it is closed.
        """
        with self._gate:
            self._gate.wait_for(lambda: self._readers == 0)
            self._env.close()
            self._env = self._open()

    @contextmanager
    def writing(self, *, buffers: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        """A transaction: synced when it is left, or nothing of it was done. Raises StorageError."""
        try:
            with self._env.begin(write=True, buffers=True) if buffers else self._env.begin(write=True) as txn:
                yield txn
            self._length.note()
        except (lmdb.Error, OSError, struct.error) as error:
            raise StorageError(f"the log in {self.path} cannot be written: {error}; {_advice(error)}") from error

    @contextmanager
    def reading(self, *, buffers: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        """A transaction that sees what was synced when it began; to be short, for it pins free pages.

        Raises StorageError.
        """
        with self._gate:
            self._readers += 1
        try:
            with self._env.begin(buffers=True) if buffers else self._env.begin() as txn:
                yield txn
        except (lmdb.Error, struct.error) as error:
            raise StorageError(f"the log in {self.path} cannot be read: {error}; {_advice(error)}") from error
        finally:
            with self._gate:
                self._readers -= 1
                self._gate.notify_all()

    def _open(self) -> lmdb.Environment:
        self._length.check()
        try:
            create(self.path)
            # Read ahead: consumers that are behind, and retention, find entries in the order in which they were stored.
            env = lmdb.open(
                str(self.path),
                map_size=self._map_bytes,
                max_dbs=len(TABLES),
                max_readers=MAX_READERS,
                readahead=True,
                lock=True,
            )
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"the log in {self.path} cannot be opened: {error}; {_advice(error)}") from error
        try:
            self._length.settle(env)
            self.tables = Tables.of(env)
            sync(self.path)
        except (lmdb.Error, OSError) as error:
            env.close()
            raise StorageError(f"the log in {self.path} cannot be opened: {error}; {_advice(error)}") from error
        return env


def _advice(error: Exception) -> str:
    if isinstance(error, _DAMAGED):
        return f"its file is damaged. {ADVICE}"
    return "free space on its disk, or raise phloem.map_bytes if it is the log that is full"
