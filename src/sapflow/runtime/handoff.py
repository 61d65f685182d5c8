"""Sockets passed between two processes of one host, by SCM_RIGHTS: what both sides know. `giving` and `taking` do it.

A giver holds one connection (Unix, SOCK_SEQPACKET) to each taker and sends a message for each socket, with the
descriptor in it; the taker answers each, in order, with one byte. Nothing was read from the socket before, so that
nothing has to be passed but the descriptor and who is at its other end.

Rule 1: a socket is the taker's from its answer TAKEN on, and the giver's for as long as that could not be sent. A giver
        that waits no longer shuts its reading side, so that no further answer can be sent, and then reads those that
        were: both know the same, and no socket is served twice or by nobody.
Rule 2: both sides ask the kernel who the other is (SO_PEERCRED): the user must be their own. The socket is in a
        directory that nobody else may enter.
Rule 3: what is said of a socket places and names it, and is never a credential.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from attrs import frozen

from sapflow.errors import LinkError
from sapflow.link.frames import Close

TAKEN = b"+"
REFUSED = b"-"
MAX_MESSAGE_BYTES = 2048
_CREDENTIALS = struct.Struct("3i")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Door = Literal["link", "exporter", "exporter-tls"]


@frozen
class Handed:
    """What is said of a socket: which door it came to, its other end's address, who gives it."""

    door: Door
    peer: str
    by: str

    def encode(self) -> bytes:
        """As a message."""
        return json.dumps({"door": self.door, "peer": self.peer, "by": self.by}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Handed:
        """From a message. Raises LinkError."""
        try:
            fields = json.loads(data)
            found = cls(fields["door"], str(fields["peer"])[:256], str(fields["by"])[:256])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LinkError(f"a socket is not told of as it should be: {error!r}", code=Close.PROTOCOL) from None
        if found.door not in ("link", "exporter", "exporter-tls"):
            raise LinkError(f"a socket of no door: {found.door!r}", code=Close.PROTOCOL)
        return found


@cache
def host_id() -> str:
    """This host since it was last started; processes that have the same one may share a file system."""
    return _BOOT_ID.read_text().strip()


def announced(path: Path) -> str:
    """How a taker's socket is told to the fleet."""
    return f"{host_id()}:{path.absolute()}"


def path_here(told: str) -> Path | None:
    """The path of a taker's socket, when it is on this host and can be seen from here."""
    host, _, path = told.partition(":")
    if host != host_id() or not path.startswith("/") or not Path(path).is_socket():
        return None
    return Path(path)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of a socket's path that fits into a Unix address (107 bytes), whatever the directory is called."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def is_mine(sock: socket.socket) -> bool:
    """Whether the process at the other end is of this process's user."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, user, _group = _CREDENTIALS.unpack(found)
    return bool(user == os.geteuid())
