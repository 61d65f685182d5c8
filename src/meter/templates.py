"""Templates of datagram exporters, kept in files, so that a restart of ours need not wait for them to be sent again.

One file an exporter, in its own protocol: datagrams that define its templates, each behind its length. A file is as old
as when its exporter sent templates last; one older than the lifetime of a template is not believed. Processes that
share a port share the files too: an exporter that the kernel moves to another of them is known there.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import get_args

import structlog
import trio
from attrs import define, field

from meter.datagrams import Exporter, ExporterKey
from sapflow.flows.datagrams import Protocol
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

_LENGTH = struct.Struct("!I")
_EXPORTERS_PER_TURN = 256

Work = list[tuple[Path, list[bytes] | None]]
"""Files, and what to write into each; None: it is only to be young again."""


@define
class TemplateStore:
    """The files of one directory."""

    directory: Path
    lifetime_s: float = 3 * 1800.0
    max_files: int = 10_000
    """Those of the exporters silent longest go first."""
    _read_until_s: float = 0.0
    _ages: dict[ExporterKey, float] = field(factory=dict)
    """Of what was read: when its exporter sent it."""
    _thread: ThreadKind = field(factory=lambda: ThreadKind("templates", 1))

    def load(self) -> dict[ExporterKey, list[bytes]]:
        """What the files hold; those that are old, damaged or too many are let go."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prune()
        return self._read(())

    async def news(self, known: Collection[ExporterKey]) -> dict[ExporterKey, list[bytes]]:
        """What other processes wrote since the last look, of exporters that are not `known`."""
        known = set(known)
        return await self._thread.run(lambda: self._read(known))

    def outlived(self) -> list[ExporterKey]:
        """Of what was read, that which is too old by now to be believed; each is told once."""
        believed_s = time.time() - self.lifetime_s
        found = [key for key, age_s in self._ages.items() if age_s < believed_s]
        for key in found:
            del self._ages[key]
        return found

    async def save(self, exporters: Iterable[Exporter]) -> None:
        """Write what has changed since the last time; never on a task that reads datagrams."""
        work: Work = []
        for index, exporter in enumerate(list(exporters)):
            if index % _EXPORTERS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            session = exporter.session
            if session.template_changes != exporter.saved_changes:
                work.append((self._path(exporter.key), session.templates()))
            elif session.templates_heard_s > exporter.saved_s + self.lifetime_s / 10:
                work.append((self._path(exporter.key), None))
            else:
                continue
            exporter.saved_changes, exporter.saved_s = session.template_changes, session.templates_heard_s
        if work:
            await self._thread.run(lambda: self._write(work))

    def _read(self, known: Collection[ExporterKey]) -> dict[ExporterKey, list[bytes]]:
        since, self._read_until_s = self._read_until_s, time.time()
        found: dict[ExporterKey, list[bytes]] = {}
        for path in self.directory.glob("*.templates"):
            key = _key(path)
            try:
                if key is None or key in known or (age_s := path.stat().st_mtime) < since:
                    continue
                datagrams = _unpack(path.read_bytes())
                if datagrams is None:
                    log.warning("templates not read", file=path.name, meaning="its exporter will send them again")
                    path.unlink()
                else:
                    found[key], self._ages[key] = datagrams, age_s
            except FileNotFoundError:
                continue  # another process let it go
        return found

    def _write(self, work: Work) -> None:
        for path, datagrams in work:
            try:
                if datagrams is None:
                    os.utime(path)
                    continue
                new = path.with_suffix(f".{os.getpid()}.new")
                new.write_bytes(b"".join(_LENGTH.pack(len(datagram)) + datagram for datagram in datagrams))
                os.replace(new, path)
            except OSError as error:
                log.warning("templates not kept", file=path.name, reason=str(error))
        self._prune()

    def _prune(self) -> None:
        """Let go of files that are old, too many, or none of ours."""
        ages: list[tuple[float, Path]] = []
        for path in self.directory.iterdir():
            if path.suffix in (".templates", ".new"):
                try:
                    ages.append((path.stat().st_mtime if _key(path) is not None else 0.0, path))
                except FileNotFoundError:
                    continue  # another process let it go
        ages.sort()
        believed_s = time.time() - self.lifetime_s
        for index, (age_s, path) in enumerate(ages):
            if age_s < believed_s or index < len(ages) - self.max_files:
                path.unlink(missing_ok=True)

    def _path(self, key: ExporterKey) -> Path:
        address, port, protocol = key
        return self.directory / f"{protocol}_{port}_{address}.templates"


def _key(path: Path) -> ExporterKey | None:
    protocol, _, rest = path.stem.partition("_")
    port, _, address = rest.partition("_")
    protocols: tuple[Protocol, ...] = get_args(Protocol)
    for known in protocols:
        if known == protocol and port.isdigit():
            return (address, int(port), known)
    return None


def _unpack(data: bytes) -> list[bytes] | None:
    datagrams = []
    at = 0
    while at < len(data):
        if len(data) - at < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            return None
        datagrams.append(data[at : at + size])
        at += size
    return datagrams
