"""What no exporter should send, by the exporter door, plain and in TLS: it ends its connection, or costs its set."""

from __future__ import annotations

import re
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define

from meter.exporter_door import ExporterDoor, SourceBinding, SourceBindings
from meter.exporter_tls import ExporterTls
from meter.intake import Intake
from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from sapflow.flows.reference import reference_work
from sapflow.flows.wire import VARIABLE_LENGTH
from sapflow.runtime.serve import address_of, listen, serve
from tests.unit.meter.test_exporter_door import a_certificate
from tests.unit.meter.test_intake import an_intake

WORK = reference_work(2)
FIXED = make_template(256, [(0, 8, 4), (0, 1, 8)])
LOOSE = make_template(257, [(0, 82, VARIABLE_LENGTH), (0, 4, 1)])
RECORD = struct.pack("!IQ", 0xC0000201, 7)


def head(version: int = 10, length: int = 16) -> bytes:
    return struct.pack("!HHIII", version, length, 0, 0, 1)


def a_set(set_id: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack("!HH", set_id, length) + body


ENDS = {
    "F01 length 0": head(length=0),
    "F02 length 15": head(length=15),
    "F06 version 9": head(version=9),
    "F06 version 5": head(version=5),
    "F06 version 11": head(version=11),
    "F06 version 0": head(version=0, length=0),
    "F06 HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "F06 ClientHello": bytes.fromhex("16030100f8010000f40303") + bytes(100),
    **{f"F07 set length {size}": make_message(a_set(256, size, bytes(8))) for size in range(4)},
    "F09 a set one byte longer than its message": make_message(make_set(2, FIXED.raw) + a_set(256, 17, RECORD)),
    "F28 one byte behind the last set": make_message(make_set(2, FIXED.raw) + b"\0"),
}
COSTS_ITS_SET = {
    "F11 a template set of 5 bytes": make_set(2, b"\1\x2c\0\1\0"),
    "F11 a template set of 7 bytes": make_set(2, b"\1\x2c\0\1\0\x08\0"),
    "F11 an options template set of 5 bytes": make_set(3, b"\1\1\0\2\0"),
    "F11 an options template set of 9 bytes": make_set(3, b"\1\1\0\2\0\1\0\x08\0"),
    "F12 65,535 fields in 20 bytes": make_set(2, struct.pack("!HH", 300, 65_535) + bytes(12)),
    "F21 a value that runs past its set": make_set(2, LOOSE.raw) + make_set(257, b"\xff\xff\xff" + bytes(10)),
}
IS_TAKEN = {
    "F03 no set at all": (make_message(b""), 0),
    "F08 empty sets": (make_message(a_set(2, 4) + a_set(3, 4) + a_set(256, 4)), 0),
    "F10 sets of reserved numbers": (make_message(make_set(0, bytes(8)) + make_set(5, bytes(8))), 0),
    "F22 a short value with a long length": (
        make_message(make_set(2, LOOSE.raw) + make_set(257, b"\xff\0\2ab\1" + b"\0\2")),
        2,
    ),
    "F28 three bytes of padding that are not zeros": (
        make_message(make_set(2, FIXED.raw) + make_set(256, RECORD + b"\1\2\3")),
        1,
    ),
}

over_both = pytest.mark.parametrize("in_tls", [False, True], ids=["tcp", "tls"])


@define
class Exporters:
    """A door, and how exporters come to it."""

    address: tuple[str, int]
    intake: Intake
    client_tls: ssl.SSLContext | None

    async def connect(self) -> trio.abc.Stream:
        tcp = await trio.open_tcp_stream(*self.address)
        if self.client_tls is None:
            return tcp
        return trio.SSLStream(tcp, self.client_tls, server_hostname="127.0.0.1", https_compatible=True)

    async def until(self, **counts: int) -> None:
        with trio.fail_after(20):
            while any(getattr(self.intake.counts, name) != count for name, count in counts.items()):
                await trio.sleep(0.01)


@asynccontextmanager
async def a_door(directory: Path, *, in_tls: bool) -> AsyncIterator[Exporters]:
    client_tls = ssl.create_default_context() if in_tls else None
    tls = None if client_tls is None else ExporterTls.load(a_certificate(directory, client_tls), "", 5.0)
    intake = an_intake()
    door = ExporterDoor(intake, SourceBindings([SourceBinding("127.0.0.0/8", "acme")]), tls=tls)
    listener = await listen("127.0.0.1:0", what="exporters")
    host, port = address_of(listener).split(":")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, max_connections=10, what="exporter"), listener, door.serve)
            yield Exporters((host, int(port)), intake, client_tls)
            nursery.cancel_scope.cancel()


async def ended(connection: trio.abc.Stream) -> bool:
    """Whether the door ends a connection, within a wide margin of the second that it has for it."""
    with trio.move_on_after(10):
        try:
            return not await connection.receive_some(1)
        except trio.BrokenResourceError:
            return True
    return False


@over_both
@pytest.mark.parametrize("case", ENDS)
async def test_what_is_no_message_ends_its_connection_with_one_line_and_one_count(
    tmp_path: Path, in_tls: bool, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_door(tmp_path, in_tls=in_tls) as door:
        neighbour = await door.connect()
        await neighbour.send_all(WORK)
        await door.until(exporters=1)
        hostile = await door.connect()
        await hostile.send_all(WORK + ENDS[case])
        assert await ended(hostile)
        await door.until(malformed=1, exporters=1)
        await neighbour.send_all(reference_work(3, define=False, sequence=48))
        await neighbour.aclose()
        await door.until(exporters=0, records=48 + 48 + 72)
        assert door.intake.counts.malformed == 1
        assert sum(door.intake.faults.by_reason.values()) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "exporter cut off" in line]
    assert len(lines) == 1
    for part in (r"org=acme", r"peer=127\.0\.0\.1:\d+", r"what=\S+", r"advice=\S+"):
        assert re.search(part, lines[0])
    offset = re.search(r"offset=(\d+)", lines[0])
    assert offset is not None
    assert len(WORK) <= int(offset[1]) < len(WORK) + len(ENDS[case])


@over_both
@pytest.mark.parametrize("case", COSTS_ITS_SET)
async def test_what_cannot_be_read_in_a_message_costs_its_set_and_is_told(
    tmp_path: Path, in_tls: bool, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_set(2, FIXED.raw), make_set(256, RECORD)
    async with a_door(tmp_path, in_tls=in_tls) as door:
        exporter = await door.connect()
        await exporter.send_all(make_message(b"".join((good[0], COSTS_ITS_SET[case], good[1]))))
        await exporter.send_all(make_message(good[1]))
        await exporter.aclose()
        await door.until(records=2, exporters=0)
        assert (door.intake.counts.malformed, door.intake.counts.refused_sets) == (0, 1)
        assert sum(door.intake.faults.by_reason.values()) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "sets left out" in line]
    assert len(lines) == 1
    assert "org=acme" in lines[0]
    assert "reasons=" in lines[0]


@over_both
@pytest.mark.parametrize("case", IS_TAKEN)
async def test_what_is_odd_but_right_is_taken(tmp_path: Path, in_tls: bool, case: str) -> None:
    data, records = IS_TAKEN[case]
    async with a_door(tmp_path, in_tls=in_tls) as door:
        exporter = await door.connect()
        await exporter.send_all(data)
        await exporter.aclose()
        await door.until(sessions=1, exporters=0, messages=1)
        assert door.intake.counts.records == records
        assert (door.intake.counts.malformed, door.intake.counts.refused_sets) == (0, 0)


async def test_f33_in_tls_records_of_one_byte_a_stream_reads_the_same(tmp_path: Path) -> None:
    work = make_message(make_set(2, FIXED.raw) + make_set(256, RECORD * 3)) + make_message(make_set(256, RECORD * 2))
    async with a_door(tmp_path, in_tls=True) as door:
        exporter = await door.connect()
        for at in range(len(work)):
            await exporter.send_all(work[at : at + 1])
        await exporter.aclose()
        await door.until(exporters=0, sessions=1, records=5)
        assert (door.intake.counts.messages, door.intake.counts.malformed) == (2, 0)
