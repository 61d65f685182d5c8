"""JSON objects, one a line, over a byte stream: how the coordinator is spoken to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import trio

from sapflow.errors import LinkError

MAX_LINE_BYTES = 1 << 20


async def send_line(stream: trio.abc.Stream, fields: dict[str, Any]) -> None:
    """Send one object."""
    await stream.send_all(json.dumps(fields, separators=(",", ":")).encode() + b"\n")


async def receive_lines(stream: trio.abc.Stream) -> AsyncIterator[dict[str, Any]]:
    """Objects until the other end closes. Raises LinkError for what is none, or too long."""
    held = b""
    async for data in stream:
        *lines, held = (held + bytes(data)).split(b"\n")
        for line in lines:
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                raise LinkError("a line is not JSON", code=1002) from None
            if not isinstance(fields, dict):
                raise LinkError("a line is not a JSON object", code=1002)
            yield fields
        if len(held) > MAX_LINE_BYTES:
            raise LinkError(f"a line is longer than {MAX_LINE_BYTES:,} bytes", code=1002)
