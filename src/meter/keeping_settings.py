"""Bounds of what a spool's keeper holds, and what it does at them."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

WhenFull = Literal["oldest", "newest"]


@frozen
class KeepingSettings:
    """Bounds of what a meter holds."""

    window_bytes: int = 32 << 20
    """Durable batches in memory, on their way."""
    stream_window_bytes: int = 4 << 20
    pending_bytes: int = 16 << 20
    """Batches in memory that are not durable yet."""
    segment_bytes: int = 1 << 20
    """A stream that cannot be offered yet and holds so much is followed by another: what is given up at a time."""
    read_bytes: int = 512 << 10
    commit_bytes: int = 4 << 20
    max_streams: int = 20_000
    org_share: float = 1.0
    """Of each of these, and of the disk: no org has more, where several share the spool."""
    when_full: WhenFull = "oldest"
