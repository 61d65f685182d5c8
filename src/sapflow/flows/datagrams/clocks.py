"""Exporters' clocks: times that are relative to when a device started, made absolute.

Uptime is counted in milliseconds in 32 bits and wraps after 49.7 days, so a flow's time is taken as its distance from
the header's uptime, backwards: a flow that seems to lie in the future is one from before the wrap, unless it lies there
by no more than clocks differ. A header whose own time is nonsense (some exporters send their uptime
there) is replaced by the time it was received.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FUTURE_MS = 3_600_000
EARLIEST_S = 946_684_800
"""2000-01-01: a header that says less has no clock."""


def header_ms(seconds: int, nanos: int, received_s: float) -> int:
    """A header's time in milliseconds since 1970; the time of receipt when the header has none that can be."""
    if seconds < EARLIEST_S:
        return int(received_s * 1000)
    return seconds * 1000 + min(nanos // 1_000_000, 999)


def absolute_ms(
    relative: NDArray[Any], uptime_ms: NDArray[np.int64] | int, now_ms: NDArray[np.int64] | int
) -> NDArray[np.int64]:
    """Times of a device's uptime (ms, modulo 2^32) as milliseconds since 1970.

    All three are of one shape, or are broadcast to one.
    """
    latest = np.asarray(uptime_ms + FUTURE_MS).astype(np.uint32)
    ages = latest - relative.astype(np.uint32)
    result: NDArray[np.int64] = (now_ms + FUTURE_MS) - ages.astype(np.int64)
    return result


def one_absolute_ms(relative: int, uptime_ms: int, now_ms: int) -> int:
    """The same of one time, in Python's integers, modulo 2^64 as an element of 64 bits has it."""
    age = (uptime_ms + FUTURE_MS - relative) & 0xFFFFFFFF
    return (now_ms + FUTURE_MS - age) & 0xFFFFFFFFFFFFFFFF
