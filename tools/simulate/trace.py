"""What happened, in order: a checksum of all of it, and its last lines for people.

Two runs of the same seed give the same checksum, or something in them was not the seed's.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import MutableMapping
from typing import Any, NoReturn
from zlib import crc32

import structlog
import trio

from tools.simulate.hosts import current_or_none

LINES = 400


class Trace:
    """Notes, what the processes log, and what is sent."""

    def __init__(self, *, keep: int = LINES) -> None:
        self.checksum = 0
        self.notes = 0
        self.lines: deque[str] = deque(maxlen=keep)
        self.unexpected: list[str] = []
        """Logged with a traceback: bugs."""
        self.hidden: dict[str, str] = {}
        """What differs between runs by itself, such as the name of a temporary directory, and what is noted for it."""

    def note(self, who: str, what: str) -> None:
        """Something happened."""
        for part, instead in self.hidden.items():
            what = what.replace(part, instead)
        line = f"{trio.current_time():10.4f}  {who:<14} {what}"
        self.notes += 1
        self.checksum = crc32(line.encode(), self.checksum)
        self.lines.append(line)

    def sent(self, local: object, remote: object, data: memoryview) -> None:
        """Bytes went out."""
        self.notes += 1
        self.checksum = crc32(data, crc32(f"{local}{remote}{trio.current_time()}".encode(), self.checksum))

    def log(self, _logger: Any, method: str, fields: MutableMapping[str, Any]) -> NoReturn:
        """As a structlog processor: nothing is printed."""
        error = fields.pop("exc_info", None)
        if isinstance(error, BaseException):
            self.unexpected.append(f"{fields.get('event')}: {told(error)}")
        event = fields.pop("event", "")
        host = current_or_none()
        said = " ".join(f"{key}={value}" for key, value in fields.items())
        self.note(host.name if host is not None else "-", f"{method}: {event} {said}")
        raise structlog.DropEvent


def told(error: BaseException) -> str:
    """An exception that nobody expected, as text."""
    return "".join(traceback.format_exception(error))
