"""Templates of datagram exporters, kept in files, so that a restart of ours need not wait for them to be sent again.

One file an exporter, in its own protocol: datagrams that define its templates, each behind its length. A file older
than the lifetime of a template is not believed.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import structlog
from attrs import define, field

from meter.datagrams import Exporter, ExporterKey
from sapflow.flows.datagrams import Protocol
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

_LENGTH = struct.Struct("!I")


@define
class TemplateStore:
    """The files of one directory."""

    directory: Path
    lifetime_s: float = 3 * 1800.0
    max_files: int = 10_000
    _thread: ThreadKind = field(factory=lambda: ThreadKind("templates", 1))

    def load(self) -> dict[ExporterKey, list[bytes]]:
        """What the files hold; those that are old or damaged are let go."""
        self.directory.mkdir(parents=True, exist_ok=True)
        found: dict[ExporterKey, list[bytes]] = {}
        for path in sorted(self.directory.glob("*.templates"))[: self.max_files]:
            key = _key(path)
            if key is None or path.stat().st_mtime < time.time() - self.lifetime_s:
                path.unlink()
                continue
            datagrams = _unpack(path.read_bytes())
            if datagrams is None:
                log.warning("templates not read", file=path.name, meaning="its exporter will send them again")
                path.unlink()
            else:
                found[key] = datagrams
        return found

    async def save(self, exporters: Iterable[Exporter]) -> None:
        """Write what has changed since the last time; never on a task that reads datagrams."""
        work = []
        for exporter in exporters:
            if exporter.session.template_changes != exporter.saved_templates:
                exporter.saved_templates = exporter.session.template_changes
                work.append((self._path(exporter.key), exporter.session.templates()))
        if work:
            await self._thread.run(lambda: self._write(work))

    def _write(self, work: list[tuple[Path, list[bytes]]]) -> None:
        for path, datagrams in work:
            new = path.with_suffix(".new")
            try:
                new.write_bytes(b"".join(_LENGTH.pack(len(datagram)) + datagram for datagram in datagrams))
                os.replace(new, path)
            except OSError as error:
                log.warning("templates not kept", file=path.name, reason=str(error))

    def _path(self, key: ExporterKey) -> Path:
        address, port, protocol = key
        return self.directory / f"{protocol}_{port}_{address.replace('%', '_')}.templates"


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
