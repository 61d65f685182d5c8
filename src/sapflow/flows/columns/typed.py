"""A fixed field's octets as numbers and times: numpy's own types, in native byte order.

Integers keep the width that they had; those of reduced size (3, 5, 6 and 7 octets) become 64 bits. Times are datetime64
of their own unit, NaT where 64 bits do not hold them. A length that its type cannot have stays raw bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapflow.flows.columns.layouts import SIGNED, Kind

NTP_TO_UNIX_S = 2_208_988_800
_MOST = np.uint64((1 << 63) - 1)


def typed(column: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Fixed fields as they came, in the type of their element; in memory of its own."""
    if column.dtype.kind == "V":
        if kind.type == "octetArray":
            return np.ascontiguousarray(column)
        return _odd_integer(column, kind.length, signed=kind.type in SIGNED)
    native = column.astype(column.dtype.newbyteorder("="))
    match kind.type:
        case "boolean":
            flags: NDArray[Any] = native == 1
            return flags
        case "dateTimeSeconds":
            return native.astype("datetime64[s]")
        case "dateTimeMilliseconds":
            return _milliseconds(native)
        case "dateTimeMicroseconds":
            return _ntp(native, 1_000_000, "us")
        case "dateTimeNanoseconds":
            return _ntp(native, 1_000_000_000, "ns")
        case _:
            return native


def _milliseconds(native: NDArray[np.uint64]) -> NDArray[np.datetime64]:
    times = native.view("datetime64[ms]")
    beyond = native > _MOST
    if beyond.any():
        times[beyond] = np.datetime64("NaT")
    return times


def _odd_integer(column: NDArray[Any], length: int, *, signed: bool) -> NDArray[Any]:
    """Reduced-size integers of 3, 5, 6 or 7 octets (RFC 7011, 6.2)."""
    octets = np.frombuffer(np.ascontiguousarray(column).tobytes(), dtype=np.uint8).reshape(-1, length)
    fill = np.where(octets[:, :1] & 0x80, 0xFF, 0).astype(np.uint8) if signed else np.uint8(0)
    wide = np.empty((len(octets), 8), dtype=np.uint8)
    wide[:, : 8 - length] = fill
    wide[:, 8 - length :] = octets
    return wide.view(">i8" if signed else ">u8").reshape(-1).astype(np.int64 if signed else np.uint64)


def _ntp(native: NDArray[np.uint64], per_second: int, unit: str) -> NDArray[np.datetime64]:
    """64-bit NTP time: seconds since 1900 and a binary fraction (RFC 7011, 6.1.9)."""
    seconds = (native >> np.uint64(32)).astype(np.int64) - NTP_TO_UNIX_S
    fraction = ((native & np.uint64(0xFFFFFFFF)) * np.uint64(per_second)) >> np.uint64(32)
    # As nanoseconds 64 bits end in 2262; NTP's era ends in 2036, and before 1970 they are negative.
    return (seconds * per_second + fraction.astype(np.int64)).view(f"datetime64[{unit}]")
