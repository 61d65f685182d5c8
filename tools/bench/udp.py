"""The UDP intake at full speed, beside other collectors: CPU seconds per million records from the network.

Ours is the intake as the balancer runs it (socket, session, templates, batches), its batches thrown away. The generator
is a process of its own; what the kernel dropped is read from the socket.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from typing import Any

import trio

from meter.datagrams import DatagramIntake, DatagramSettings
from meter.udp import UdpDoor, bind_udp
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.flows.reference import reference_work
from tools.bench import rivals
from tools.peers import find

SECONDS = 5.0
ROUNDS = 3


def run() -> list[dict[str, Any]]:
    """Ours at rising rates, until the kernel drops; then the others at their own pace."""
    rows = [_ours(rate) for rate in (250_000, 500_000, 1_000_000, 1_500_000, 2_000_000)]
    for name, rival in (("goflow2", rivals.goflow2), ("nfcapd", rivals.nfcapd), ("nfacctd", rivals.nfacctd)):
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


def _ours(rate: int) -> dict[str, Any]:
    return trio.run(_take, rate)


async def _take(rate: int) -> dict[str, Any]:
    uplink = Uplink(FixedTarget(Target("nowhere", "")), _nowhere, UplinkSettings(hello={}))
    intake = DatagramIntake(uplink, DatagramSettings(), lambda _: "default")
    door = UdpDoor(intake, None, bind_udp("127.0.0.1:0"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.run)
        nursery.start_soon(_forget, uplink)
        process = multiprocessing.Process(target=_generate, args=(door.address, rate), daemon=True)
        process.start()
        began, used = time.perf_counter(), time.process_time()
        while process.is_alive():
            await trio.sleep(0.05)
        took = time.perf_counter() - began
        await trio.sleep(0.3)
        used = time.process_time() - used
        drops, records = door.kernel_drops(), intake.counts.records
        nursery.cancel_scope.cancel()
    return {
        "what": "sapflow's UDP intake",
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


def _generate(address: str, rate: int) -> None:
    """Bursts of a millisecond's worth, for SECONDS."""
    host, port = address.split(":")
    work = reference_work(2000)
    messages, at = [], 0
    while at < len(work):
        length = int.from_bytes(work[at + 2 : at + 4], "big")
        messages.append(work[at : at + length])
        at += length
    per_second = rate / rivals.RECORDS_PER_MESSAGE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((host, int(port)))
        sender.send(messages[0])
        began, sent = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < SECONDS:
            while sent < passed * per_second:
                sender.send(messages[1 + sent % 2000])
                sent += 1
            time.sleep(0.001)
