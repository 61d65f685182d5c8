"""What is fuzzed: each target takes any bytes, and raises only for a bug of ours.

Beyond errors that are not declared, a target asserts what must hold for any input: that what an intake passes on reads
whole and as it was counted, that columns hold as many records as were counted, that JSON is JSON.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import trio
import trio.testing
from attrs import frozen

from balancer.hints import read_hint
from meter.batching import Batcher, Draft
from sapflow.errors import LinkError, MalformedMessage
from sapflow.flows.captures import Datagrams, Packet, TcpSegments, read_capture
from sapflow.flows.columns import decode
from sapflow.flows.datagrams import DatagramSession, Protocol, protocol_of
from sapflow.flows.formats import FORMATS, open_writer
from sapflow.flows.limits import FlowLimits
from sapflow.flows.records import Context
from sapflow.flows.registry import registry
from sapflow.flows.session import Session
from sapflow.flows.structured import ListDecoder
from sapflow.link import Connection, LinkLimits, Side
from sapflow.runtime.websocket import accept
from tools.fuzz import seeds

RECEIVED_S = 1_750_000_000.0


@frozen
class Target:
    """Something that takes bytes, and inputs to begin from."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def _batched(data: bytes) -> Draft | None:
    """What an intake makes of a stream: it must read whole, strictly, with the records that were counted."""
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
    batcher.feed(data)
    draft = batcher.flush()
    if draft is not None:
        _check(draft)
    return draft


def _check(draft: Draft) -> None:
    walk = Session().walk(draft.payload)
    assert (walk.fault, walk.taken, walk.records) == (None, len(draft.payload), draft.records), walk


def walk(data: bytes) -> None:
    """A stream of IPFIX in one piece and in two: the same batches, which read whole."""
    whole = _batched(data)
    batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        if batcher.fault is None:
            batcher.feed(piece)
    assert batcher.flush() == whole
    Session().walk(data)


def columns(data: bytes) -> None:
    """As many records in columns as were counted; bytes that nobody checked give columns or MalformedMessage."""
    draft = _batched(data)
    if draft is not None:
        assert sum(batch.records for batch in decode(draft.payload)) == draft.records
    try:
        decode(data)
    except MalformedMessage:
        return


def formats(data: bytes) -> None:
    """Every output of what an intake passes on; JSON lines that are JSON, one a record."""
    draft = _batched(data)
    if draft is None:
        return
    for name in FORMATS:
        out = io.BytesIO()
        writer = open_writer(name, out)
        assert writer.write(draft.payload, Context(org="acme")) == draft.records
        writer.close()
        if name == "jsonl":
            lines = out.getvalue().splitlines()
            assert len(lines) == draft.records
            for line in lines:
                json.loads(line, parse_constant=_refuse)
        if name == "ipfix":
            assert Session().walk(out.getvalue()).fault is None


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def lists(data: bytes) -> None:
    """A list of any kind, by the first byte."""
    kind = ("basicList", "subTemplateList", "subTemplateMultiList")[data[0] % 3] if data else "basicList"
    values = ListDecoder(seeds.LIST_TEMPLATES.get, registry()).render(kind, data[1:])
    json.loads(json.dumps(values), parse_constant=_refuse)


def _datagrams(protocol: Protocol) -> Callable[[bytes], None]:
    """Datagrams of one protocol, each behind its length: what comes out of them an intake can take."""

    def run(data: bytes) -> None:
        session = DatagramSession(protocol)
        batcher = Batcher(FlowLimits(), batch_bytes=1 << 30)
        together = seeds.parted(data)
        for datagram in together[:4]:
            if protocol_of(datagram) == protocol:
                batcher.feed(session.take([datagram], RECEIVED_S))
        batcher.feed(session.take([each for each in together[4:] if protocol_of(each) == protocol], RECEIVED_S))
        assert batcher.fault is None, batcher.fault
        # What cannot be read has been left out by then, but for elements of no length without number.
        assert set(batcher.counts.refused_sets) <= {"values"}, batcher.counts.refused_sets
        draft = batcher.flush()
        if draft is not None:
            _check(draft)
        again = DatagramSession(protocol)
        again.restore(session.templates())
        assert session.lost >= 0

    return run


def captures(data: bytes) -> None:
    """A capture of either kind, its datagrams and its streams."""
    datagrams, segments = Datagrams(), TcpSegments()
    try:
        for packet in read_capture(io.BytesIO(data)):
            _drain(packet, datagrams, segments)
    except MalformedMessage:
        return
    datagrams.finish()
    list(segments.finish())


def _drain(packet: Packet, datagrams: Datagrams, segments: TcpSegments) -> None:
    list(datagrams.feed(packet))
    list(segments.feed(packet))


def frames(data: bytes) -> None:
    """Packets as each link layer has them, each behind its length."""
    datagrams, segments = Datagrams(), TcpSegments()
    for number, packet in enumerate(seeds.parted(data)):
        link_type = packet[0] if packet else 1
        for kind in (link_type, *seeds.LINK_TYPES):
            _drain(Packet(number, kind, packet[1:], 0), datagrams, segments)
    datagrams.finish()
    list(segments.finish())


def link(data: bytes) -> None:
    """Our own protocol, as either side hears it."""
    for side in (Side.SERVER, Side.CLIENT):
        try:
            Connection(side).receive(data)
        except LinkError:
            continue


def hint(data: bytes) -> None:
    """The first bytes at the link door."""
    try:
        if data:
            read_hint(data, LinkLimits())
    except LinkError:
        return


def websocket(data: bytes) -> None:
    """The server's side of a handshake, and what comes behind it."""
    trio.run(_handshake, data)


async def _handshake(data: bytes) -> None:
    theirs, ours = trio.testing.memory_stream_pair()
    await theirs.send_all(data)
    await theirs.send_eof()
    try:
        stream = await accept(ours)
        while await stream.receive_some():
            continue
    except (LinkError, trio.BrokenResourceError):
        return


TARGETS: dict[str, Target] = {
    "walk": Target(walk, seeds.ipfix_streams),
    "columns": Target(columns, seeds.ipfix_streams),
    "formats": Target(formats, seeds.ipfix_streams),
    "lists": Target(lists, seeds.lists),
    "netflow5": Target(_datagrams("netflow5"), seeds.netflow5),
    "netflow9": Target(_datagrams("netflow9"), seeds.netflow9),
    "ipfix": Target(_datagrams("ipfix"), seeds.ipfix_datagrams),
    "sflow": Target(_datagrams("sflow"), seeds.sflow),
    "captures": Target(captures, seeds.captures),
    "frames": Target(frames, seeds.frames),
    "link": Target(link, seeds.links),
    "hint": Target(hint, seeds.hints),
    "websocket": Target(websocket, seeds.websockets),
}
