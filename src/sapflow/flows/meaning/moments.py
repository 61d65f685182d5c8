"""When flows began and ended, from whichever elements an exporter used: microseconds since 1970, NaT where not told.

Exporters have four units of time since 1970, times relative to the export or to when the device started, durations,
and times of observation. The first that was told counts, in the order of `_absolute`; a time of zero tells nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
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


def flow_times(
    fields: Fields, export_times: NDArray[np.int64], booted_ms: int | None, prefix: str = ""
) -> tuple[Times, Times]:
    """Start and end of each record.

    `export_times` are seconds since 1970, or empty; `booted_ms` is when the exporter started (ms since 1970), if it
    told that in options data. With the prefix of reverse elements, those of a biflow's other direction.
    """
    start = _absolute(fields, "Start", export_times, booted_ms, prefix)
    end = _absolute(fields, "End", export_times, booted_ms, prefix)
    lasted = _duration(fields, prefix)
    start, end = _first(start, end - lasted), _first(end, start + lasted)
    if prefix:
        return start, end
    seen = _observed(fields)
    return _first(start, seen), _first(end, seen)


def _absolute(fields: Fields, side: Side, export_times: NDArray[np.int64], booted_ms: int | None, prefix: str) -> Times:
    found = nothing(fields.records)
    for unit in ("Nanoseconds", "Microseconds", "Milliseconds", "Seconds"):
        found = _first(found, _microseconds(fields.times(f"{prefix}flow{side}{unit}")))
    if len(export_times):
        ago = fields.integers(f"{prefix}flow{side}DeltaMicroseconds")
        if ago is not None:
            now = (export_times * 1_000_000).view("datetime64[us]")
            found = _first(found, now - ago.astype(np.int64).view("timedelta64[us]"))
    return _first(found, _of_uptime(fields, f"{prefix}flow{side}SysUpTime", export_times, booted_ms))


def _of_uptime(fields: Fields, name: str, export_times: NDArray[np.int64], booted_ms: int | None) -> Times | None:
    """A time of the device's uptime, which wraps after 49.7 days: the latest that is not in the export's future."""
    uptime = fields.integers(name)
    if uptime is None:
        return None
    booted = fields.times("systemInitTimeMilliseconds")
    since = booted.astype(np.int64) if booted is not None else np.full(fields.records, booted_ms or 0, np.int64)
    told = since > 0
    moment = np.where(told, since, 0) + uptime.astype(np.int64)
    if len(export_times):
        wraps = (export_times * 1000 + FUTURE_MS - moment) // _WRAP_MS
        moment = np.where((export_times >= EARLIEST_S) & (wraps > 0), moment + wraps * _WRAP_MS, moment)
    return np.where(told, (moment * 1000).view("datetime64[us]"), _NEVER)


def _duration(fields: Fields, prefix: str) -> NDArray[np.timedelta64]:
    for name, factor in (("flowDurationMicroseconds", 1), ("flowDurationMilliseconds", 1000)):
        found = fields.integers(prefix + name)
        if found is not None:
            return (found.astype(np.int64) * factor).view("timedelta64[us]")
    return np.full(fields.records, np.timedelta64("NaT", "us"))


def _observed(fields: Fields) -> Times | None:
    for unit in ("Nanoseconds", "Microseconds", "Milliseconds", "Seconds"):
        found = _microseconds(fields.times(f"observationTime{unit}"))
        if found is not None:
            return found
    return None


def _microseconds(times: NDArray[np.datetime64] | None) -> Times | None:
    if times is None:
        return None
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
