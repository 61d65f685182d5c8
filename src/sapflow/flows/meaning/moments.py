"""When flows began and ended, from whichever elements an exporter used: microseconds since 1970, NaT where not told.

Exporters have four units of time since 1970, times relative to the export or to when the device started, durations,
and times of observation. The first that was told counts, in the order of `_absolute`; a time of zero tells nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from sapflow.flows.datagrams.clocks import EARLIEST_S, FUTURE_MS
from sapflow.flows.meaning.fields import Fields

Times = NDArray[np.datetime64]
"""datetime64[us]."""
Side = Literal["Start", "End"]

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_LAST_S = 253_402_300_800
"""Year 10000."""
_NEVER = np.datetime64("NaT", "us")
_WRAP_MS = 1 << 32


@frozen(eq=False)
class Clock:
    """What times that are told in relation to others are reckoned from; 0: nobody told. Shape (records,) each."""

    export_times: NDArray[np.int64]
    """When each record was exported, in seconds since 1970."""
    booted_ms: NDArray[np.int64]
    """When its exporter started, as options data told, in milliseconds since 1970."""


def flow_times(fields: Fields, clock: Clock, prefix: str = "") -> tuple[Times, Times]:
    """Start and end of each record; with the prefix of reverse elements, those of a biflow's other direction."""
    start = _absolute(fields, "Start", clock, prefix)
    end = _absolute(fields, "End", clock, prefix)
    lasted = _duration(fields, prefix)
    if lasted is not None:
        start, end = _first(start, end - lasted), _first(end, start + lasted)
    if prefix:
        return start, end
    seen = _observed(fields)
    return _first(start, seen), _first(end, seen)


def _absolute(fields: Fields, side: Side, clock: Clock, prefix: str) -> Times:
    found = nothing(fields.records)
    for unit in ("Nanoseconds", "Microseconds", "Milliseconds", "Seconds"):
        times = fields.times(f"{prefix}flow{side}{unit}")
        found = _first(found, None if times is None else _microseconds(times.values))
    ago = fields.integers(f"{prefix}flow{side}DeltaMicroseconds")
    if ago is not None:
        now = (clock.export_times * 1_000_000).view("datetime64[us]")
        moment = now - ago.values.astype(np.int64).view("timedelta64[us]")
        found = _first(found, np.where(ago.told & (clock.export_times > 0), moment, _NEVER))
    return _first(found, _of_uptime(fields, f"{prefix}flow{side}SysUpTime", clock))


def _of_uptime(fields: Fields, name: str, clock: Clock) -> Times | None:
    """A time of the device's uptime, which wraps after 49.7 days: the latest that is not in the export's future."""
    uptime = fields.integers(name)
    if uptime is None:
        return None
    booted = fields.times("systemInitTimeMilliseconds")
    since = (
        clock.booted_ms if booted is None else np.where(booted.told, booted.values.astype(np.int64), clock.booted_ms)
    )
    told = uptime.told & (since > 0)
    moment = np.where(told, since, 0) + uptime.values.astype(np.int64)
    wraps = (clock.export_times * 1000 + FUTURE_MS - moment) // _WRAP_MS
    moment = np.where((clock.export_times >= EARLIEST_S) & (wraps > 0), moment + wraps * _WRAP_MS, moment)
    return np.where(told, (moment * 1000).view("datetime64[us]"), _NEVER)


def _duration(fields: Fields, prefix: str) -> NDArray[np.timedelta64] | None:
    """How long flows lasted: of each record the first that it has."""
    lasted = None
    for name, factor in (("flowDurationMicroseconds", 1), ("flowDurationMilliseconds", 1000)):
        found = fields.integers(prefix + name)
        if found is not None:
            told = (found.values.astype(np.int64) * factor).view("timedelta64[us]")
            told = np.where(found.told, told, np.timedelta64("NaT", "us"))
            lasted = told if lasted is None else np.where(np.isnat(lasted), told, lasted)
    return lasted


def _observed(fields: Fields) -> Times | None:
    """When flows were seen: of each record the first that it has."""
    seen, known = None, np.zeros(fields.records, np.bool_)
    for unit in ("Nanoseconds", "Microseconds", "Milliseconds", "Seconds"):
        found = fields.times(f"observationTime{unit}")
        if found is not None:
            seen = np.where(found.told & ~known, _microseconds(found.values), nothing(1) if seen is None else seen)
            known |= found.told
    return seen


def _microseconds(times: NDArray[np.datetime64]) -> Times:
    per_second = _PER_SECOND[np.datetime_data(times.dtype)[0]]
    raw = times.view(np.int64)
    # What lies outside years 1970 to 9999 is no time, and would overflow.
    told = (raw > 0) & (raw // per_second < _LAST_S)
    safe = np.where(told, raw, 0)
    us = safe * (1_000_000 // per_second) if per_second <= 1_000_000 else safe // (per_second // 1_000_000)
    return np.where(told, us.view("datetime64[us]"), _NEVER)


def nothing(records: int) -> Times:
    """No time of any record."""
    return np.full(records, _NEVER)


def _first(one: Times, other: Times | None) -> Times:
    return one if other is None else np.where(np.isnat(one), other, one)
