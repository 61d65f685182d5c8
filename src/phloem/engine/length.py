"""How long the log's file is known to be: what shows that its end was cut off before LMDB reads there.

LMDB maps its file, and a page that is not there any more ends the process with SIGBUS. Its own last page number does
not tell what must be there: pages that one transaction takes and gives back are never written. But its file never
shrinks; so after each sync its length is noted beside it, and a file shorter than that has lost something. The note
itself is not synced: after a loss of power it may be older than the file, never newer.
"""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from sapflow.errors import StorageError

DATA, NOTE = "data.mdb", "synced-length"
ADVICE = (
    "Something other than sapflow cut it: bring that file back whole (from a copy, or with its file system mended), or "
    "move the directory away, and a new log begins; docs/how-to/mend-a-log.md says what each means for the data"
)


class SyncedLength:
    """The note, and the comparison with the file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / DATA
        self._note = os.open(directory / NOTE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._noted = int(os.pread(self._note, 32, 0) or b"0")
        except ValueError:
            self._noted = 0

    def check(self) -> None:
        """Before LMDB opens the file. Raises StorageError when bytes that were synced are missing."""
        size = self._data.stat().st_size if self._data.exists() else 0
        if size < self._noted:
            raise StorageError(
                f"the log in {self._directory} is not whole: of the {self._noted:,} bytes of {DATA} that were synced "
                f"the last {self._noted - size:,} are missing. {ADVICE}"
            )

    def settle(self, env: lmdb.Environment) -> None:
        """After LMDB opened the file: zeros where it may look and nothing was written, and the length synced.

        The zeros take no room. What reads them finds no page, and says so; without them, the process would end.
        """
        expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        file = os.open(self._data, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size < expected:
                os.truncate(file, expected)
            os.fsync(file)
        finally:
            os.close(file)
        self.note()

    def note(self) -> None:
        """After a sync: the file is so long now."""
        size = self._data.stat().st_size
        if size != self._noted:
            os.pwrite(self._note, b"%020d\n" % size, 0)
            self._noted = size

    def close(self) -> None:
        """Let go of the note."""
        os.close(self._note)
