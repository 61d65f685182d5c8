"""The UDP intake at full speed, beside other collectors: CPU seconds per million records from the network.

Ours is the intake as the balancer runs it (socket, session, templates, batches), its batches thrown away. The generator
is a process of its own; what the kernel dropped is read from the socket.
"""

from __future__ import annotations

import multiprocessing
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import trio

from meter.datagrams import DatagramIntake, DatagramSettings
from meter.udp import UdpDoor, bind_udp
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.flows.datagrams.netflow5 import HEADER as V5_HEADER
from sapflow.flows.datagrams.netflow9 import HEADER as V9_HEADER
from sapflow.flows.ipfix.encode import make_message, make_set
from sapflow.flows.limits import FlowLimits
from sapflow.flows.reference import (
    EXPORT_TIME,
    REFERENCE_FIELDS,
    reference_records,
    reference_template,
    reference_work,
)
from sapflow.flows.wire import FIRST_DATA_SET, MESSAGE_HEADER, TEMPLATE_SET
from tools.bench import rivals
from tools.peers import find

SECONDS = 5.0
RATES = (250_000, 500_000, 1_000_000, 1_500_000, 2_000_000)
DATAGRAMS = 2000
"""Of a protocol; sent again and again, with numbers that go on."""
UPTIME_MS = 100_000
MANY_TEMPLATES = 10_000
DEFINING_S = 0.1
"""For 500 templates; what defining them costs is not counted."""


def run() -> list[dict[str, Any]]:
    """Ours at rising rates, until the kernel drops; NetFlow at the goal's and twice that; others at their own pace."""
    rows = [_ours("IPFIX", rate) for rate in RATES]
    rows += [_ours(protocol, rate) for protocol in ("NetFlow v5", "NetFlow v9") for rate in (1_000_000, 2_000_000)]
    rows.append(_ours("IPFIX", 1_000_000, templates=MANY_TEMPLATES))
    for name, rival in (
        ("goflow2", rivals.goflow2_decode),
        ("goflow2", rivals.goflow2),
        ("nfcapd", rivals.nfcapd),
        ("nfacctd", rivals.nfacctd),
    ):
        if find(name) is not None:
            found = rival()
            rows.append(
                {
                    "what": found["what"],
                    "sent, M records/s": "-",
                    "taken, M records/s": found["M records/s"],
                    "kernel drops": "-",
                    "CPU s / M records": found["CPU s / M records"],
                }
            )
    return rows


def _ours(protocol: str, rate: int, *, templates: int = 1) -> dict[str, Any]:
    return trio.run(_take, protocol, rate, templates)


async def _take(protocol: str, rate: int, templates: int) -> dict[str, Any]:
    uplink = Uplink(FixedTarget(Target("nowhere", "")), _nowhere, UplinkSettings(hello={}))
    limits = FlowLimits(max_templates=2 * MANY_TEMPLATES, max_template_bytes=16 << 20)
    intake = DatagramIntake(uplink, DatagramSettings(limits=limits), lambda _: "default")
    door = UdpDoor(intake, None, bind_udp("127.0.0.1:0"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.run)
        nursery.start_soon(_forget, uplink)
        process = multiprocessing.Process(target=_generate, args=(door.address, protocol, rate, templates), daemon=True)
        process.start()
        while not intake.counts.records:
            await trio.sleep(0.005)
        began, used = time.perf_counter(), time.process_time()
        while process.is_alive():
            await trio.sleep(0.05)
        took = time.perf_counter() - began
        await trio.sleep(0.3)
        used = time.process_time() - used
        drops, records = door.kernel_drops(), intake.counts.records
        nursery.cancel_scope.cancel()
    return {
        "what": f"sapflow's UDP intake, {protocol}" + (f", {templates:,} templates" if templates > 1 else ""),
        "sent, M records/s": round(rate / 1e6, 2),
        "taken, M records/s": round(records / took / 1e6, 2),
        "kernel drops": drops,
        "CPU s / M records": round(used / (records / 1e6), 3),
    }


async def _nowhere(_: Target) -> trio.abc.Stream:
    raise AssertionError("nothing is sent here")


async def _forget(uplink: Uplink) -> None:
    """Every batch is durable at once."""
    while True:
        for stream in uplink.streams:
            stream.acknowledged(stream.outbox.last)
        await trio.sleep(0.01)


def _generate(address: str, protocol: str, rate: int, templates: int) -> None:
    """Bursts of a millisecond's worth, for SECONDS; of many templates (IPFIX), each datagram is of the next."""
    host, port = address.split(":")
    first, made, number_at, step = _GENERATORS[protocol]()
    per_second = rate / rivals.RECORDS_PER_MESSAGE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((host, int(port)))
        sender.send(first)
        for at in range(1, templates, 500):
            numbers = range(FIRST_DATA_SET + at, FIRST_DATA_SET + min(at + 500, templates))
            sets = make_set(TEMPLATE_SET, b"".join(reference_template(number).raw for number in numbers))
            sender.send(make_message(sets, domain=1))
            time.sleep(DEFINING_S)
        began, sent = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < SECONDS:
            while sent < passed * per_second:
                datagram = made[sent % DATAGRAMS]
                struct.pack_into("!I", datagram, number_at, (sent * step) & 0xFFFFFFFF)
                if templates > 1:
                    struct.pack_into("!H", datagram, MESSAGE_HEADER.size, FIRST_DATA_SET + sent % templates)
                sender.send(datagram)
                sent += 1
            time.sleep(0.001)


Generated = tuple[bytes, list[bytearray], int, int]
"""The datagram to begin with, those that follow, where in them the number is, and what it counts up by."""


def _ipfix() -> Generated:
    work = reference_work(DATAGRAMS, rivals.RECORDS_PER_MESSAGE)
    messages, at = [], 0
    while at < len(work):
        length = int.from_bytes(work[at + 2 : at + 4], "big")
        messages.append(bytearray(work[at : at + length]))
        at += length
    return bytes(messages[0]), messages[1:], 8, rivals.RECORDS_PER_MESSAGE


def _netflow9() -> Generated:
    """The reference records, their last two elements read as of the device's uptime, each in 8 bytes."""
    fields = [(element, size) for _, element, size in REFERENCE_FIELDS[:-2]] + [(22, 8), (21, 8)]
    template = struct.pack("!HH", 256, len(fields)) + b"".join(struct.pack("!HH", *field) for field in fields)
    head = V9_HEADER.pack(9, 1, UPTIME_MS, EXPORT_TIME, 0xFFFFFFFF, 1)
    first = head + struct.pack("!HH", 0, 4 + len(template)) + template
    size = sum(size for _, size in fields) * rivals.RECORDS_PER_MESSAGE
    head = V9_HEADER.pack(9, rivals.RECORDS_PER_MESSAGE, UPTIME_MS, EXPORT_TIME, 0, 1)
    head += struct.pack("!HH", 256, 4 + size)
    records = reference_records(DATAGRAMS * rivals.RECORDS_PER_MESSAGE)
    return first, [bytearray(head + records[at : at + size]) for at in range(0, len(records), size)], 12, 1


def _netflow5() -> Generated:
    """Records of 48 bytes, out of the reference records."""
    size = 48 * rivals.RECORDS_PER_MESSAGE
    head = V5_HEADER.pack(5, rivals.RECORDS_PER_MESSAGE, UPTIME_MS, EXPORT_TIME, 0, 0, 1, 2, 0)
    records = reference_records(DATAGRAMS * rivals.RECORDS_PER_MESSAGE)
    made = [bytearray(head + records[at : at + size]) for at in range(0, DATAGRAMS * size, size)]
    return V5_HEADER.pack(5, 0, UPTIME_MS, EXPORT_TIME, 0, 0, 1, 2, 0), made, 16, rivals.RECORDS_PER_MESSAGE


_GENERATORS: dict[str, Callable[[], Generated]] = {"IPFIX": _ipfix, "NetFlow v5": _netflow5, "NetFlow v9": _netflow9}
