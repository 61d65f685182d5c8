"""IPFIX Files (RFC 5655): messages as they were, in one file that any IPFIX reader takes as one transport session.

Streams bring their own template ids into it. Where a stream's definition differs from what the file last said of that
domain and id, the file withdraws it first; sequence numbers are counted anew for each domain.
"""

from __future__ import annotations

from typing import BinaryIO

from sapflow.errors import MalformedMessage
from sapflow.flows.encode import make_message, make_set
from sapflow.flows.records import Context
from sapflow.flows.session import Session
from sapflow.flows.templates import Template
from sapflow.flows.wire import FIRST_DATA_SET, MESSAGE_HEADER, SET_HEADER, VERSION


class IpfixWriter:
    """Writes batches of any streams into one IPFIX File."""

    def __init__(self, out: BinaryIO) -> None:
        self.left_out: set[str] = set()
        """Nothing: messages are whole."""
        self._out = out
        self._known: dict[int, Template] = {}
        self._sequence: dict[int, int] = {}

    def write(self, data: bytes, context: Context, limit: int | None = None) -> int:
        """Write whole messages: returns their records. Raises MalformedMessage.

        With a limit, whole messages are written as long as their records fit it.
        """
        session = Session()
        at = written = 0
        while at < len(data) and (limit is None or written < limit):
            _, length, _, _, domain = MESSAGE_HEADER.unpack_from(data, at)
            message = data[at : at + length]
            walk = session.walk(message)
            if walk.fault is not None:
                raise MalformedMessage(walk.fault.what, offset=at + walk.fault.offset, reason=walk.fault.reason)
            if limit is not None and written + walk.records > limit:
                break
            self._define(domain, session, MESSAGE_HEADER.unpack_from(message)[2])
            self._put(message, domain, walk.records)
            written += walk.records
            at += length
        return written

    def close(self) -> None:
        """Nothing is due."""
        self._out.flush()

    def _put(self, message: bytes, domain: int, records: int) -> None:
        """The message's data sets; what defines templates was written by `_define`."""
        sets = []
        at = MESSAGE_HEADER.size
        while at < len(message):
            set_id, length = SET_HEADER.unpack_from(message, at)
            if set_id >= FIRST_DATA_SET:
                sets.append(message[at : at + length])
            at += length
        if not sets:
            return
        body = b"".join(sets)
        export_time = MESSAGE_HEADER.unpack_from(message)[2]
        sequence = self._sequence.get(domain, 0)
        self._out.write(MESSAGE_HEADER.pack(VERSION, 16 + len(body), export_time, sequence, domain) + body)
        self._sequence[domain] = (sequence + records) & 0xFFFFFFFF

    def _define(self, domain: int, session: Session, export_time: int) -> None:
        """Say what the session's templates of this domain are, where the file says otherwise."""
        for key, template in session.templates.items():
            if key >> 16 != domain:
                continue
            known = self._known.get(key)
            if known is not None and known.raw == template.raw and known.scope_count == template.scope_count:
                continue
            sequence = self._sequence.get(domain, 0)
            if known is not None:
                withdrawal = make_set(known.set_id, template.id.to_bytes(2, "big") + b"\0\0")
                self._out.write(make_message(withdrawal, domain=domain, sequence=sequence, export_time=export_time))
            definition = make_set(template.set_id, template.raw)
            self._out.write(make_message(definition, domain=domain, sequence=sequence, export_time=export_time))
            self._known[key] = template
