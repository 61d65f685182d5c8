"""NetFlow v5 to IPFIX, many datagrams at a time.

A v5 record keeps all its fields, as standard elements; behind them come the times that they mean (flowStart- and
flowEndMilliseconds, from the header's clock) and what the header says of all its records: engine and sampling. The
observation domain is the engine: type << 8 | id. Layout: Cisco, "NetFlow Export Datagram Format", version 5.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams.clocks import absolute_ms, header_ms
from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from sapflow.flows.ipfix.sequences import SequenceCounter
from sapflow.flows.wire import MAX_MESSAGE_BYTES

VERSION = 5
HEADER = struct.Struct("!HHIIIIBBH")
"""version, count, uptime (ms), unix seconds, nanoseconds, flow sequence, engine type, engine id, sampling."""
RECORD_BYTES = 48
TEMPLATE = make_template(
    256,
    [
        *((0, number, size) for number, size in ((8, 4), (12, 4), (15, 4), (10, 2), (14, 2), (2, 4), (1, 4), (22, 4))),
        *((0, number, size) for number, size in ((21, 4), (7, 2), (11, 2), (6, 1), (4, 1), (5, 1), (16, 2), (17, 2))),
        *((0, number, size) for number, size in ((9, 1), (13, 1), (152, 8), (153, 8), (38, 1), (39, 1), (34, 2))),
        (0, 35, 1),
    ],
)
_IN = np.dtype(
    {
        "names": ["head", "times", "tail"],
        "formats": ["V36", (">u4", 2), "V9"],
        "offsets": [0, 24, 37],
        "itemsize": RECORD_BYTES,
    }
)
_OUT = np.dtype([("head", "V36"), ("tail", "V9"), ("times", ">u8", 2), ("header", "V5")])
_SAMPLING = struct.Struct("!HB")
_RECORDS_PER_MESSAGE = (MAX_MESSAGE_BYTES - 20) // _OUT.itemsize


@define
class Netflow5:
    """One exporter's v5 datagrams; `sequences` is what was lost, by observation domain (flows)."""

    records: int = 0
    sequences: dict[int, SequenceCounter] = field(factory=dict)
    max_domains: int = 256
    _numbers: dict[int, int] = field(factory=dict)
    _defined: set[int] = field(factory=set)

    def run_of(self, datagram: bytes) -> Hashable:
        """Engine and sampling: the same for datagrams that `translate_all` takes together."""
        return datagram[20:24]

    def translate(self, datagram: bytes, received_s: float) -> bytes:
        """The IPFIX messages of one datagram. Raises MalformedMessage."""
        return self.translate_all([datagram], received_s)

    def translate_all(self, datagrams: Sequence[bytes], received_s: float) -> bytes:
        """The IPFIX messages of datagrams that share engine and sampling; `received_s` stands in for a broken clock.

        Raises MalformedMessage, before anything has changed, when one of them is not v5.
        """
        for datagram in datagrams:
            self.check(datagram)
        heads = [self._head(datagram, received_s) for datagram in datagrams]
        pieces = [
            datagram[HEADER.size : HEADER.size + count * RECORD_BYTES]
            for datagram, (count, _, _) in zip(datagrams, heads, strict=True)
        ]
        engine_type, engine_id, sampling = struct.unpack_from("!BBH", datagrams[-1], 20)
        records = np.frombuffer(b"".join(pieces), _IN)
        out = np.empty(len(records), _OUT)
        out["head"], out["tail"] = records["head"], records["tail"]
        out["times"] = _times(records["times"], heads)
        out["header"] = np.void(datagrams[-1][20:22] + _SAMPLING.pack(sampling & 0x3FFF, sampling >> 14))
        return self._messages(out, engine_type << 8 | engine_id, heads[-1][2] // 1000)

    def refresh(self) -> None:
        """Define the template again with what comes next."""
        self._defined.clear()

    def check(self, datagram: bytes) -> None:
        """Raises MalformedMessage for a datagram that is not v5, or not whole."""
        if len(datagram) < HEADER.size:
            raise MalformedMessage("a NetFlow v5 header is cut off", offset=0, reason="truncated")
        version, count = struct.unpack_from("!HH", datagram)
        if version != VERSION:
            raise MalformedMessage(f"version {version}, not 5", offset=0, reason="version")
        if len(datagram) < HEADER.size + count * RECORD_BYTES:
            what = f"{count:,} NetFlow v5 records in {len(datagram):,} bytes"
            raise MalformedMessage(what, offset=2, reason="truncated")
        domain = datagram[20] << 8 | datagram[21]
        if domain not in self.sequences and len(self.sequences) >= self.max_domains:
            raise MalformedMessage(f"more than {self.max_domains} engines", offset=20, reason="domains")

    def _head(self, datagram: bytes, received_s: float) -> tuple[int, int, int]:
        """count, uptime (ms), and the header's time (ms since 1970)."""
        _, count, uptime, seconds, nanos, number, kind, engine, _ = HEADER.unpack_from(datagram)
        self.sequences.setdefault(kind << 8 | engine, SequenceCounter()).follow(number, count, uptime)
        self.records += count
        return count, uptime, header_ms(seconds, nanos, received_s)

    def _messages(self, out: NDArray[np.void], domain: int, export_time: int) -> bytes:
        messages = []
        number = self._numbers.get(domain, 0)
        if domain not in self._defined:
            self._defined.add(domain)
            definition = make_set(TEMPLATE.set_id, TEMPLATE.raw)
            messages.append(make_message(definition, domain=domain, sequence=number, export_time=export_time))
        for at in range(0, len(out), _RECORDS_PER_MESSAGE):
            part = out[at : at + _RECORDS_PER_MESSAGE]
            data = make_set(TEMPLATE.id, part.tobytes())
            messages.append(make_message(data, domain=domain, sequence=number, export_time=export_time))
            number = (number + len(part)) & 0xFFFFFFFF
        self._numbers[domain] = number
        return b"".join(messages)


def _times(uptimes: NDArray[np.uint32], heads: list[tuple[int, int, int]]) -> NDArray[np.int64]:
    """First and last of each record, absolute."""
    if len(heads) == 1:
        _, uptime_ms, now_ms = heads[0]
        return absolute_ms(uptimes, uptime_ms, now_ms)
    of_each = np.repeat(np.array(heads, np.int64), [count for count, _, _ in heads], axis=0)
    return absolute_ms(uptimes, of_each[:, 1:2], of_each[:, 2:3])
