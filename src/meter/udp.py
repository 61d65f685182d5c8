"""The exporters' UDP door: a socket read many datagrams at a time, with the kernel's own drops counted.

Several processes may share the port (SO_REUSEPORT): the kernel keeps one exporter with one of them. The socket's buffer
is made as large as the kernel allows, and its size is shown; what overflowed it is read from /proc/net.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
import trio
from attrs import define, field

from meter.datagrams import DatagramIntake
from meter.recvmmsg import DATAGRAMS, Reader, Source, open_reader
from meter.templates import TemplateStore
from sapflow.errors import ConfigurationError
from sapflow.runtime.addresses import join_address, split_address

log = structlog.get_logger()

BUFFER_BYTES = 32 << 20
SLICE_BYTES = 96 << 10
"""Taken before other tasks get their turn: 64 KiB made to be slow take 50 ms."""
FLUSH_CHECK_S = 0.1
UPKEEP_S = 10.0
_SO_RCVBUFFORCE = 33


@define
class UdpDoor:
    """A bound socket and the tasks that read it into an intake. `run()` is its task tree."""

    intake: DatagramIntake
    store: TemplateStore | None
    sock: socket.socket
    clock: Callable[[], float] = time.time
    _reader: Reader = field(init=False)
    _drops_told: int = 0

    def __attrs_post_init__(self) -> None:
        self._reader = open_reader(self.sock)

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.sock.getsockname()[:2]
        return join_address(host, port)

    @property
    def buffer_bytes(self) -> int:
        """What the kernel gave for datagrams that were not read yet."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    def kernel_drops(self) -> int:
        """Datagrams that came when the buffer was full."""
        inode = str(os.fstat(self.sock.fileno()).st_ino)
        for table in ("udp", "udp6"):
            path = Path("/proc/self/net") / table
            if path.exists():
                for line in path.read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[9] == inode:
                        return int(fields[-1])
        return 0

    async def run(self) -> None:
        """Read until cancelled; then what has come is handed to the uplink."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush)
                nursery.start_soon(self._upkeep)
                await self._read()
        finally:
            self.intake.close()
            self.sock.close()

    async def _read(self) -> None:
        more = False
        while True:
            if more:
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                await trio.lowlevel.wait_readable(self.sock)
            try:
                found = self._reader.read()
            except OSError as error:
                log.debug("datagrams not read", reason=error.strerror)
                found = []
            with trio.CancelScope(shield=True):  # what was read is taken, whoever stops us
                for part in slices(found):
                    self.intake.take(part, trio.current_time(), self.clock())
                    await trio.lowlevel.checkpoint()
            more = len(found) == DATAGRAMS

    async def _flush(self) -> None:
        while True:
            await trio.sleep(FLUSH_CHECK_S)
            self.intake.flush(trio.current_time())

    async def _upkeep(self) -> None:
        """Keep templates in files, let go of exporters that are silent, tell of what the kernel dropped."""
        while True:
            await trio.sleep(UPKEEP_S)
            self._tell_drops()
            if self.store is not None:
                await self.store.save(self.intake.exporters.values())
                self.intake.remember(await self.store.news(self.intake.exporters.keys()))
                for key in self.store.outlived():
                    self.intake.remembered.pop(key, None)
            self.intake.expire(trio.current_time())

    def _tell_drops(self) -> None:
        drops = self.kernel_drops()
        if drops > self._drops_told:
            log.warning(
                "datagrams dropped by the kernel",
                datagrams=drops - self._drops_told,
                buffer_bytes=self.buffer_bytes,
                meaning="they came faster than they were read; their records are lost and counted as such",
                advice="let another balancer process share the port, or make balancer.udp_buffer_bytes larger",
            )
        self._drops_told = drops


def slices(datagrams: list[tuple[bytes, Source]]) -> Iterator[list[tuple[bytes, Source]]]:
    """Datagrams in their order, so many at a time that no other task waits long: `SLICE_BYTES`, or one."""
    first = size = 0
    for index, (data, _) in enumerate(datagrams):
        if size and size + len(data) > SLICE_BYTES:
            yield datagrams[first:index]
            first, size = index, 0
        size += len(data)
    if datagrams[first:]:
        yield datagrams[first:]


def bind_udp(address: str, buffer_bytes: int = BUFFER_BYTES) -> socket.socket:
    """A socket that shares its port with others of this host. Raises ConfigurationError that says what to do."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _enlarge(sock, buffer_bytes)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"cannot listen on {address} for exporters (UDP): {error.strerror}; choose another address in the "
            "configuration (balancer.udp)"
        ) from error
    return sock


def _enlarge(sock: socket.socket, wanted_bytes: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted_bytes)
    given_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    if given_bytes < wanted_bytes:
        log.warning(
            "UDP buffer smaller than wanted",
            given_bytes=given_bytes,
            wanted_bytes=wanted_bytes,
            meaning="bursts of datagrams that it cannot hold are lost",
            advice=f"sysctl -w net.core.rmem_max={wanted_bytes}",
        )
