"""IPFIX Files dropped into a directory: taken whole into the spool, then moved to done/ or failed/.

A file is moved when all of it is durable, and its stream ends after that. So one that was half read when the meter was
killed goes on in its stream, behind the last byte that is in the spool; and one that was moved is never read again.
Files are dropped by renaming them into place; names that begin with a dot or end in .part or .tmp are not looked at.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

import structlog
import trio
from attrs import define, field, frozen

from meter.batching import Batcher
from meter.spooling import SpooledStream, Spooling
from sapflow.errors import ConfigurationError
from sapflow.flows.limits import FlowLimits
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

LOOK_S = 1.0
MAX_TOLD = 1000


@define
class DropCounts:
    """What files have brought; never goes down."""

    files: int = 0
    failed: int = 0
    bytes: int = 0
    records: int = 0


@frozen
class DroppedFile:
    """A file, and what tells it from another of the same name."""

    path: Path
    source: str


@define
class DropDirectory:
    """Takes files one after the other. `run()` is its task."""

    directory: Path
    spooling: Spooling
    org: str
    settle_s: float = 1.0
    batch_bytes: int = 64 << 10
    counts: DropCounts = field(factory=DropCounts)
    _thread: ThreadKind = field(factory=lambda: ThreadKind("drop", 1))
    _told: set[str] = field(factory=set)

    def prepare(self) -> None:
        """Make the directories. Raises ConfigurationError."""
        try:
            for directory in (self.directory, self.directory / "done", self.directory / "failed"):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"files cannot be taken from {self.directory}: {error.strerror}; choose another with meter.drop"
            ) from error

    async def run(self) -> None:
        """Look, and take what is there, until cancelled."""
        there = {file.source for file in await self._thread.run(lambda: self.look(settle_s=0.0))}
        for lane in self.spooling.keeping.sources():
            if lane.source not in there:
                # It was moved, and the meter killed before that was noted.
                self.spooling.keeping.close(lane)
        while True:
            for file in await self._thread.run(lambda: self.look(self.settle_s)):
                try:
                    await self.take(file)
                except OSError as error:
                    self._tell(file, error)
            await trio.sleep(LOOK_S)

    def look(self, settle_s: float) -> list[DroppedFile]:
        """Files that have not changed for so long, the oldest first."""
        found = []
        for path in self.directory.iterdir():
            if path.name.startswith(".") or path.suffix in (".part", ".tmp"):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_mtime <= time.time() - settle_s:
                source = f"{path.name}|{status.st_ino}|{status.st_mtime_ns}|{status.st_size}"
                found.append((status.st_mtime_ns, DroppedFile(path, source)))
        return [file for _, file in sorted(found, key=lambda item: (item[0], item[1].path.name))]

    async def take(self, file: DroppedFile) -> None:
        """One file from where it was left to its end. Raises OSError when it cannot be read or moved."""
        stream = self.spooling.file(self.org, f"file:{file.path.name}", file.source)
        with await self._thread.run(lambda: file.path.open("rb")) as opened:
            fault = await self._read(opened, stream)
        await stream.durable()
        await self._thread.run(lambda: self._move(file.path, "failed" if fault else "done"))
        stream.end()
        self.counts.files += 1
        if fault:
            self.counts.failed += 1
            log.warning("file failed", file=file.path.name, what=fault, data="what came whole before it is kept")
        else:
            log.info("file taken", file=file.path.name)

    async def _read(self, opened: BinaryIO, stream: SpooledStream) -> str:
        """Put all that is not in the spool yet: what is wrong with the file, or "" """
        known = stream.lane.offset
        batcher = Batcher(FlowLimits(), batch_bytes=self.batch_bytes)
        fed = 0
        while batcher.fault is None:
            # What is known is walked again for its templates, and not put again.
            most = min(self.batch_bytes, known - fed) if fed < known else self.batch_bytes
            data = await self._thread.run(lambda most=most: opened.read(most))  # type: ignore[misc]
            if not data:
                break
            fed += len(data)
            draft = batcher.feed(data)
            if fed == known:
                batcher.flush()
            elif fed > known and draft is not None:
                self._count(len(draft.payload), draft.records)
                await stream.put(draft, fed - batcher.partial_bytes)
        if (draft := batcher.flush()) is not None and fed > known:
            self._count(len(draft.payload), draft.records)
            await stream.put(draft, fed - batcher.partial_bytes)
        if batcher.fault is not None:
            return str(batcher.fault)
        return f"it ends inside a message, {batcher.partial_bytes:,} bytes into it" if batcher.partial_bytes else ""

    def _count(self, size: int, records: int) -> None:
        self.counts.bytes += size
        self.counts.records += records

    def _move(self, path: Path, where: str) -> None:
        target = self.directory / where / path.name
        number = 0
        while target.exists():
            number += 1
            target = self.directory / where / f"{path.name}.{number}"
        path.rename(target)
        for directory in (target.parent, self.directory):
            opened = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)

    def _tell(self, file: DroppedFile, error: OSError) -> None:
        if file.source not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(file.source)
            log.error("file not taken", file=file.path.name, reason=str(error), advice="it is tried again and again")
