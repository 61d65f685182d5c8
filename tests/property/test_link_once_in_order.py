"""Two ends and an engine, driven through any interleaving, split and loss of the transport: once, in order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sapflow.link import (
    Acknowledged,
    Batch,
    BatchReceived,
    Connection,
    CreditGranted,
    CreditPool,
    CreditWanted,
    HelloReceived,
    Opened,
    Outbox,
    Rewound,
    Sender,
    Side,
    StreamId,
)
from sapflow.link.frames import Hint


class Transport:
    """A meter's end and an engine's end, joined by bytes in flight that may be cut anywhere."""

    def __init__(self, pool: CreditPool, number: int, outboxes: dict[StreamId, Outbox]) -> None:
        self.number = number
        self.meter, self.engine = Connection(Side.CLIENT), Connection(Side.SERVER)
        self.up, self.down = b"", b""
        self.pool = pool
        self.senders: dict[int, Sender] = {}
        self.streams: dict[int, StreamId] = {}
        self.engine.receive(self.meter.hello(Hint()))
        self.meter.receive(self.engine.welcome())
        for stream, outbox in outboxes.items():
            sender = Sender(self.meter, outbox, stream=stream, org="o", exporter="x", lookahead_bytes=1)
            self.senders[sender.handle] = sender
            self.up += sender.opening + b"".join(sender.pump())


class OnceInOrder(RuleBasedStateMachine):
    """Rules of the design: kept until acknowledged, sent again from the lowest, stored contiguously."""

    def __init__(self) -> None:
        super().__init__()
        self.outboxes = {StreamId(bytes([n]) * 16): Outbox() for n in range(3)}
        self.log: dict[StreamId, list[bytes]] = {stream: [] for stream in self.outboxes}
        self.put: dict[StreamId, list[bytes]] = {stream: [] for stream in self.outboxes}
        self.acknowledged: dict[StreamId, int] = dict.fromkeys(self.outboxes, 0)
        self.pool = CreditPool(100, org_share=1.0, max_want_bytes=40)
        self.held: list[tuple[Transport, int, StreamId, Batch]] = []
        self.links = [Transport(self.pool, 0, self.outboxes)]
        self.count = 1

    @rule(index=st.integers(0, 2), size=st.integers(1, 40))
    def meter_puts(self, index: int, size: int) -> None:
        stream = list(self.outboxes)[index]
        seq = self.outboxes[stream].last + 1
        payload = bytes([seq % 256]) * size
        self.outboxes[stream].put(Batch(seq, 1, 1, 0, payload))
        self.put[stream].append(payload)
        for link in self.links:
            for sender in link.senders.values():
                link.up += b"".join(sender.pump())

    @rule(cut=st.integers(1, 200))
    def bytes_reach_the_engine(self, cut: int) -> None:
        for link in self.links:
            data, link.up = link.up[:cut], link.up[cut:]
            for event in link.engine.receive(data):
                match event:
                    case Opened(handle, stream):
                        link.streams[handle] = stream
                        self.pool.open((link.number, handle), "o")
                    case CreditWanted(handle, limit):
                        self.pool.want((link.number, handle), limit)
                    case BatchReceived(handle, batch):
                        self.pool.received((link.number, handle), batch.size)
                        self.held.append((link, handle, link.streams[handle], batch))
                    case HelloReceived():
                        raise AssertionError
        self._grant()

    def _grant(self) -> None:
        for key, limit in self.pool.turn():
            assert isinstance(key, tuple)
            for link in self.links:
                if link.number == key[0]:
                    link.down += link.engine.grant(key[1], limit)

    @rule(cut=st.integers(1, 200))
    def bytes_reach_the_meter(self, cut: int) -> None:
        for link in self.links:
            data, link.down = link.down[:cut], link.down[cut:]
            for event in link.meter.receive(data):
                match event:
                    case Acknowledged(handle, through):
                        link.senders[handle].outbox.acknowledged(through)
                    case CreditGranted(handle, _):
                        link.up += b"".join(link.senders[handle].pump())
                    case Rewound(handle, _):
                        link.senders[handle].reset()
                        link.up += b"".join(link.senders[handle].pump())

    @precondition(lambda self: self.held)
    @rule(count=st.integers(1, 5))
    def engine_commits(self, count: int) -> None:
        group, self.held = self.held[:count], self.held[count:]
        for link, handle, stream, batch in group:
            self.pool.release("o", batch.size)
            stored = self.log[stream]
            if batch.seq == len(stored) + 1:
                stored.append(batch.payload)
            self.acknowledged[stream] = max(self.acknowledged[stream], min(batch.seq, len(stored)))
            if link in self.links:
                link.down += link.engine.acknowledge(handle, len(stored))
                if batch.seq > len(stored):
                    link.down += link.engine.rewind(handle, len(stored))
        self._grant()

    @rule()
    def link_breaks_and_comes_again(self) -> None:
        """What was in flight is lost; what the engine holds is still committed, late."""
        for link in self.links:
            for handle in link.streams:
                self.pool.close((link.number, handle))
        self.links = [Transport(self.pool, self.count, self.outboxes)]
        self.count += 1

    @rule()
    def engine_is_killed(self) -> None:
        """What it held and had not committed is gone, and so are its links."""
        for _link, _handle, _stream, batch in self.held:
            self.pool.release("o", batch.size)
        self.held = []
        self.link_breaks_and_comes_again()

    @invariant()
    def the_log_is_a_prefix_of_what_was_put(self) -> None:
        for stream, stored in self.log.items():
            assert stored == self.put[stream][: len(stored)]

    @invariant()
    def nothing_let_go_is_missing(self) -> None:
        for stream, outbox in self.outboxes.items():
            assert outbox.lowest <= len(self.log[stream]) + 1

    @invariant()
    def the_budget_holds(self) -> None:
        assert 0 <= self.pool.used_bytes <= self.pool.budget_bytes

    def teardown(self) -> None:
        """Once faults stop, everything arrives."""
        self.link_breaks_and_comes_again()
        for _ in range(400):
            if all(not len(outbox) for outbox in self.outboxes.values()):
                break
            self.bytes_reach_the_engine(10_000)
            if self.held:
                self.engine_commits(100)
            self.bytes_reach_the_meter(10_000)
        assert self.log == self.put
        assert all(not len(outbox) for outbox in self.outboxes.values())


TestOnceInOrder = OnceInOrder.TestCase
TestOnceInOrder.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
