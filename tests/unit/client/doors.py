"""A consume door in a thread of its own, over a real log: for programs under any event loop."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from phloem.consume import Consumers, ConsumeSettings
from phloem.engine.embedded import EmbeddedLog
from phloem.engine.kafka.log import KafkaLog
from phloem.engine.kafka.settings import KafkaSettings
from phloem.groups import GroupSettings
from sapflow.entry import LogEntry
from sapflow.flows.reference import reference_work
from sapflow.runtime.serve import address_of, listen, serve
from sapflow.runtime.threads import ThreadKind
from tests.unit.phloem.fake_kafka import FakeKafka

TOKENS = {"a-token": "acme", "g-token": "globex"}
STREAM = bytes(range(16))


@define
class Door:
    """`acme` and `globex` have the tokens `a-token` and `g-token`; the fleet has `f-token`."""

    engine: Any
    """An `EmbeddedLog`, or a `KafkaLog` over a Kafka in memory."""
    url: str = ""
    groups: GroupSettings = field(factory=GroupSettings)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _token: trio.lowlevel.TrioToken | None = None
    _port: int = 0
    _thread: threading.Thread | None = None
    _consumers: Consumers | None = None

    def store(self, first: int, last: int, org: str = "acme", *, wake: bool = True) -> None:
        """Batches with these numbers, of 24 records each; whoever follows is woken."""
        work = reference_work(1)
        entries = [LogEntry(STREAM, seq, "192.0.2.1:9", seq * 1000, 2, 24, work) for seq in range(first, last + 1)]
        self.engine.append([(org, entry) for entry in entries])
        if wake and self._token is not None and self._consumers is not None:
            self._token.run_sync_soon(self._consumers.stored, {org})

    def start(self) -> None:
        """Serve, at the address of before if there was one."""
        ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve, ready))
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        """Serve no longer: connections are cut."""
        assert self._token is not None
        assert self._thread is not None
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(10)
        self._token = None

    async def _serve(self, ready: threading.Event) -> None:
        consumers = Consumers(
            self.engine,
            ConsumeSettings("f-token", feed_entries=3, groups=self.groups),
            TOKENS.get,
            set(TOKENS.values()).__contains__,
            ThreadKind("storage", 1),
        )
        listener = await listen(f"127.0.0.1:{self._port}", what="consumers")
        address = address_of(listener)
        self.url, self._port = f"link://{address}", int(address.split(":")[1])
        self._token, self._consumers = trio.lowlevel.current_trio_token(), consumers
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            nursery.start_soon(consumers.run)
            ready.set()
            await partial(serve, max_connections=10, what="consume")(listener, consumers.serve)
        await listener.aclose()


@contextmanager
def a_door(
    directory: Path,
    batches: int = 0,
    groups: GroupSettings | None = None,
    *,
    kafka: FakeKafka | None = None,
    node: str = "phloem-1",
) -> Iterator[Door]:
    """A door over a log that has so many batches of acme: one of its own, or that of the nodes which share `kafka`."""
    engine: Any
    if kafka is None:
        engine = EmbeddedLog.open(directory / "log", map_bytes=1 << 28)
    else:
        engine = KafkaLog(KafkaSettings(servers="k:1", node=node, partitions=1), kafka.clients())
        engine.reopen()
    door = Door(engine, groups=groups or GroupSettings())
    if batches:
        door.store(1, batches)
    door.start()
    try:
        yield door
    finally:
        if door._token is not None:
            door.stop()
        door.engine.close()
