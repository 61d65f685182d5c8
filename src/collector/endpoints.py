"""An org's publication point on this collector.

Batches of a stream are kept in its outbox from their arrival until some durable subscriber acknowledges them; that
acknowledgement goes back upstream, and only then are their bytes given back to the budget. Durable subscribers push
back by credit; live ones shed, and never hold anybody up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
from attrs import define, field

from collector.telling import Room, Told
from sapflow.link import Batch, CreditPool, Outbox, Sender, StreamId, Traffic
from sapflow.runtime.session import LinkSession

log = structlog.get_logger()


class LiveSubscriber(Protocol):
    """Takes a batch or sheds it; never waits."""

    def offer(self, stream: StreamState, batch: Batch) -> None: ...


@define(eq=False)
class StreamState:
    """One stream on this collector; `upstream` is where its acknowledgements go, while that link lives."""

    id: StreamId
    org: str
    exporter: str
    outbox: Outbox = field(factory=Outbox)
    upstream: tuple[LinkSession, int] | None = None
    taken_bytes: int = 0
    """Of all batches that came, for its rate."""
    told: Told = field(factory=Told)
    """What it told of its exporter."""


class DurableSubscription:
    """One Phloem node's subscription to one endpoint, over that node's link.

    Every stream of the endpoint is opened on the link and sent from its lowest unacknowledged batch.
    """

    def __init__(self, endpoint: Endpoint, session: LinkSession, handles: Handles, receiver: str) -> None:
        self.endpoint = endpoint
        self.receiver = receiver
        """The node's name: it receives once, whatever connections of it there are."""
        self._session = session
        self._handles = handles
        self._senders: dict[StreamId, Sender] = {}

    def add(self, stream: StreamState) -> None:
        """Open a stream towards the subscriber."""
        sender = Sender(
            self._session.connection,
            stream.outbox,
            stream=stream.id,
            org=stream.org,
            exporter=stream.exporter,
            traffic=self.endpoint.given,
        )
        self._senders[stream.id] = sender
        self._handles[sender.handle] = (self, stream)
        self._session.send(sender.opening, lane=stream.org)
        self.pump(stream)

    def pump(self, stream: StreamState) -> None:
        """Send what credit allows."""
        self._session.send(*self._senders[stream.id].pump(), lane=stream.org)

    def rewind(self, stream: StreamState) -> None:
        """The subscriber lacks a batch: send again from the lowest."""
        self._senders[stream.id].reset()
        self.pump(stream)

    def close(self) -> None:
        """The subscriber lets go of this endpoint, and keeps its link."""
        self.endpoint.unsubscribe(self)
        for stream in list(self.endpoint.streams.values()):
            self.remove(stream)

    def remove(self, stream: StreamState) -> None:
        """The stream is no more, or not sent here any more."""
        sender = self._senders.pop(stream.id)
        del self._handles[sender.handle]
        self._session.send(self._session.connection.end(sender.handle), lane=stream.org)


Handles = dict[int, tuple[DurableSubscription, StreamState]]
"""Whose stream a handle of one subscriber's link is."""


class Endpoint:
    """One org's streams and subscribers on this collector."""

    def __init__(
        self,
        org: str,
        pool: CreditPool,
        on_release: Callable[[], None],
        room: Room | None = None,
        on_forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        self.org = org
        self.taken = Traffic()
        self.given = Traffic()
        """To durable subscribers, with what was sent again."""
        self.due_bytes = 0
        """What should go to durable subscribers: all that is taken, once to each receiver."""
        self.repeats = 0
        self.streams: dict[StreamId, StreamState] = {}
        self.durable: list[DurableSubscription] = []
        self.live: list[LiveSubscriber] = []
        self.held_bytes = 0
        self._pool = pool
        self._on_release = on_release
        self._room = room or Room()
        self._on_forgotten = on_forgotten

    @property
    def receivers(self) -> int:
        """Nodes that durably subscribe: how often a byte that comes in should go out to them."""
        return len({subscription.receiver for subscription in self.durable})

    def attach(self, stream: StreamId, exporter: str, upstream: tuple[LinkSession, int]) -> StreamState:
        """A stream arrives on a link: one that was here before goes on where it was."""
        state = self.streams.get(stream)
        if state is None:
            state = self.streams[stream] = StreamState(stream, self.org, exporter, told=Told(self.org, self._room))
            state.upstream = upstream
            for subscription in self.durable:
                subscription.add(state)
        else:
            state.upstream = upstream
        return state

    def detach(self, state: StreamState, session: LinkSession) -> None:
        """The stream's link ended. What is held is still delivered; then the stream is forgotten."""
        if state.upstream is not None and state.upstream[0] is session:
            state.upstream = None
            self._forget_if_done(state)

    def publish(self, state: StreamState, batch: Batch) -> None:
        """Take a batch whose bytes were received under credit."""
        self.taken.add(batch)
        state.taken_bytes += batch.size
        change = state.outbox.put(batch)
        self.held_bytes += change
        if change != batch.size:
            self.repeats += change == 0
            self._release(batch.size - change)
        if change == 0:
            return
        self.due_bytes += len(batch.payload) * self.receivers
        for subscription in self.durable:
            subscription.pump(state)
        if batch.payload:
            for live in self.live:
                live.offer(state, batch)

    def acknowledged(self, state: StreamState, through: int) -> None:
        """A durable subscriber has everything up to `through`: let go, and tell upstream."""
        released = state.outbox.acknowledged(through)
        if released:
            self.held_bytes -= released
            self._release(released)
        if state.upstream is not None:
            session, handle = state.upstream
            session.send(session.connection.acknowledge(handle, through))
        self._forget_if_done(state)

    def rewound(self, subscription: DurableSubscription, state: StreamState, mark: int) -> None:
        """The engine's mark is `mark`: send again from the lowest; when that is too high, ask upstream for it."""
        if state.outbox.lowest <= mark + 1:
            subscription.rewind(state)
            return
        self.drop(state)
        if state.upstream is not None:
            session, handle = state.upstream
            session.send(session.connection.rewind(handle, mark))

    def drop(self, state: StreamState) -> None:
        """Let go of what is held without it being durable; upstream still has it, or sends it again elsewhere."""
        released = state.outbox.acknowledged(state.outbox.last)
        self.held_bytes -= released
        self._release(released)
        self._forget_if_done(state)

    def subscribe(self, subscription: DurableSubscription) -> None:
        """Everything held, and everything to come."""
        if all(one.receiver != subscription.receiver for one in self.durable):
            self.due_bytes += self.held_bytes
        self.durable.append(subscription)
        for state in list(self.streams.values()):
            subscription.add(state)

    def unsubscribe(self, subscription: DurableSubscription) -> None:
        """The subscriber, or its link, is gone; what it did not acknowledge stays."""
        self.durable.remove(subscription)

    def _release(self, size: int) -> None:
        self._pool.release(self.org, size)
        self._on_release()

    def _forget_if_done(self, state: StreamState) -> None:
        if state.upstream is None and not len(state.outbox) and state.id in self.streams:
            del self.streams[state.id]
            state.told.forget()
            for subscription in self.durable:
                subscription.remove(state)
            self._on_forgotten()
