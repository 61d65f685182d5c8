"""What exporters brought, in the form that every process shows its traffic in."""

from __future__ import annotations

from typing import Any

from meter.datagrams import DatagramIntakeCounts
from meter.intake import IntakeCounts


def exporters_flow(tcp: IntakeCounts, udp: DatagramIntakeCounts | None) -> dict[str, Any]:
    """By transport: bytes as they came, the messages and records that were in them."""
    flow: dict[str, Any] = {"exporters_tcp": {"in": _figures(tcp)}}
    if udp is not None:
        flow["exporters_udp"] = {"in": _figures(udp)}
    return flow


def _figures(counts: IntakeCounts | DatagramIntakeCounts) -> dict[str, int]:
    return {
        "batches": counts.batches,
        "bytes": counts.bytes,
        "messages": counts.messages,
        "records": counts.records,
    }
