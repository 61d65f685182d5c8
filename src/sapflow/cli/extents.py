"""How much of a log, as tables show it: where it is not known, a dash, or the most that it can be."""

from __future__ import annotations

from sapflow.client import Extent


def batches(extent: Extent) -> str:
    """How many, or at most how many."""
    return f"<={extent.positions:,}" if extent.entries is None else f"{extent.entries:,}"


def records(extent: Extent) -> str:
    """How many."""
    return "-" if extent.records is None else f"{extent.records:,}"


def mebibytes(extent: Extent) -> str:
    """How many."""
    return "-" if extent.bytes is None else f"{extent.bytes / 2**20:.1f}"


def not_read(gap: Extent | None) -> str:
    """What to say behind a group's figures of what retention removed before it was read."""
    return f"  {batches(gap)} batches past retention were not read" if gap is not None else ""
