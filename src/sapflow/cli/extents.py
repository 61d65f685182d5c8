"""How much of a log, as tables show it: where it is not known, a dash, or the most that it can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sapflow.client import Extent


def groups_of(statuses: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each consumer group once, as processes tell of them: nodes that share a log all know it.

    The one with most of its members knows it best.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for group in (group for status in statuses for group in status.get("groups", ())):
        known = groups.setdefault((group["org"], group["group"]), group)
        if group["members"] > known["members"]:
            groups[group["org"], group["group"]] = group
    return list(groups.values())


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
