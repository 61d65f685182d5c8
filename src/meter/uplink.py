"""Streams onto links to collectors, re-homed at a batch boundary when a collector dies.

Streams are opened and fed by whoever reads exporters. Which collector takes a stream is asked of a `Chooser`; each
collector's link is a task of the uplink's own nursery, so no task that carries data ever connects. A stream keeps
each batch until it is acknowledged as durable, and after any reconnect sends again from its lowest.

A collector that asks to be left (move, go-away) keeps its streams until the link to the next one is up: make before
break. A link that its last stream has left ends. A stream obeys one move in a while: whoever sends it round and round
costs it little. A collector that says hold is not dialled before its time, and not by all at the same moment.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio
from attrs import define

from meter.budget import Budget
from meter.choosing import Chooser, FixedTarget, Target
from meter.left import LeftStream
from meter.target_link import TargetLink
from meter.uplink_stream import UplinkSettings, UplinkStream
from sapflow.errors import LinkError, Overloaded, Refused, Unreachable, first_of
from sapflow.link import StreamId, Traffic
from sapflow.runtime.seldom import Seldom

__all__ = ["Chooser", "FixedTarget", "Target", "Uplink", "UplinkSettings", "UplinkStream"]

log = structlog.get_logger()

STEADY_S = 60.0
"""A link that lasted for so long is dialled again as if it had never failed."""
MOVE_PAUSE_S = 30.0
"""A stream that obeyed a move obeys none for so long."""


@define
class Quarantined:
    """What collectors refused; never goes down."""

    batches: int = 0
    records: int = 0


class Uplink:
    """All streams of one process, and the links that carry them. `run()` is its task tree."""

    def __init__(
        self, chooser: Chooser, dial: Callable[[Target], Awaitable[trio.abc.Stream]], settings: UplinkSettings
    ) -> None:
        self.chooser = chooser
        self.settings = settings
        self.links: dict[str, TargetLink] = {}
        self.streams: dict[UplinkStream, None] = {}
        """In the order that they came, and so in the same in every run of a simulation."""
        self.budget = Budget(settings.budget_bytes, settings.org_share)
        self.taken = Traffic()
        self.given = Traffic()
        """With what was sent again."""
        self.quarantined = Quarantined()
        self.refused: Refused | None = None
        self.was_refused = trio.Event()
        self.last_error = ""
        self.on_welcomed: Callable[[str, dict[str, Any]], None] | None = None
        """Told of a target whose link is up, and what it said."""
        self.on_moved: Callable[[str, str], None] | None = None
        """Told of a collector that a stream moves to, and its address."""
        self._dial = dial
        self._nursery: trio.Nursery | None = None
        self._not_before: dict[str, float] = {}
        self._homeless: dict[StreamId, UplinkStream] = {}
        self._wake = trio.Event()
        self._failures: dict[str, int] = {}
        self._lost = Seldom()

    def open_stream(self, org: str, exporter: str, stream_id: StreamId | None = None) -> UplinkStream:
        """A stream, with an id that was never used before if none is given."""
        stream = UplinkStream(
            stream_id or StreamId(os.urandom(16)), org, exporter, self.settings, self.budget, self.taken
        )
        stream.on_left = self._left_behind
        self.streams[stream] = None
        self.rehome(stream)
        return stream

    def resume_stream(self, org: str, exporter: str, left: LeftStream) -> UplinkStream:
        """A stream that another process left: what was not durable then is sent again, under the same numbers.

        A new one where some of that is neither here nor durable: nothing behind it would ever be stored.
        """
        if not left.is_whole:
            return self.open_stream(org, exporter)
        stream = self.open_stream(org, exporter, left.id)
        stream.resume(left)
        return stream

    def _left_behind(self, stream: UplinkStream) -> None:
        """Another process goes on with a stream, and tells its collector: an end, said here, would be wrong."""
        for link in {*self.links.values(), *([stream.link] if stream.link is not None else [])}:
            link.abandon(stream)
        self.forget(stream)

    def rehome(self, stream: UplinkStream) -> None:
        """Find the stream a collector anew; what it holds is sent again from its lowest."""
        stream.link = None
        stream.target = None
        self._homeless[stream.id] = stream
        self._wake.set()

    def move(self, stream: UplinkStream, target: Target) -> None:
        """Take a stream to another link; it stays where it is until that is up."""
        self._link(target).expect(stream)

    def moved(self, stream: UplinkStream, to: str, address: str) -> None:
        """The fleet wants a stream elsewhere: by the collector's own address if given, else through the same door."""
        assert stream.link is not None
        now = trio.current_time()
        if now < stream.moved_at + MOVE_PAUSE_S:
            log.info("move not obeyed", stream=stream.id.hex(), destination=to, reason="it moved just now")
            return
        stream.moved_at = now
        log.info("stream moves", stream=stream.id.hex(), source=stream.target, destination=to)
        if address and self.on_moved is not None:
            self.on_moved(to, address)
        self.move(stream, Target(to, address) if address else Target(to, stream.link.target.address, want=to))

    def batch_refused(self, stream: UplinkStream, seq: int, reason: str, by: str) -> None:
        """A collector does not take a batch: it is counted and told, and the stream goes on without its records."""
        batch = stream.refused(seq, reason)
        if batch is None:
            return
        self.quarantined.batches += 1
        self.quarantined.records += batch.records
        log.error(
            "batch refused",
            org=stream.org,
            exporter=stream.exporter,
            stream=stream.id.hex(),
            number=seq,
            records=batch.records,
            collector=by,
            reason=reason,
            meaning="its records are not stored, and are in the ledger as refused; the stream goes on",
            advice="this is a fault of ours, or of the disk or the network between: please report it",
        )

    def leave(self, link: TargetLink, deadline_s: float) -> None:
        """A link is to be left: its streams move, and whatever is on it at the deadline finds its collector anew."""
        self.left(link)
        self.chooser.leaving(link.target.name, deadline_s)
        assert self._nursery is not None
        self._nursery.start_soon(self._empty, link, deadline_s)

    async def _empty(self, link: TargetLink, deadline_s: float) -> None:
        """Move what is on a link, as there is room elsewhere, and then end it."""
        name = link.target.name
        # Many are told so at once: they do not all come back to one door at once.
        not_before = trio.current_time() + random.uniform(0, deadline_s / 2)
        with trio.move_on_after(deadline_s):
            while streams := link.streams():
                for stream in streams:
                    target = self.chooser.choose(stream) if stream.heading is None else None
                    if target is None:
                        continue
                    if target.name == name and name not in self.links:
                        self._hold(name, not_before - trio.current_time())
                    self.move(stream, target)
                await trio.sleep(random.uniform(0.05, 0.2))
        link.cut()

    def left(self, link: TargetLink) -> None:
        """A link is given no more streams."""
        if self.links.get(link.target.name) is link:
            del self.links[link.target.name]

    def retire(self, link: TargetLink) -> None:
        """A link is of no more use."""
        self.left(link)
        assert self._nursery is not None
        self._nursery.start_soon(link.close)

    @property
    def up(self) -> list[str]:
        """The targets that a link is up to."""
        return [name for name, link in self.links.items() if link.welcomed]

    def forget(self, stream: UplinkStream) -> None:
        """A stream that ended, with all of it durable."""
        self.streams.pop(stream, None)
        self._homeless.pop(stream.id, None)
        self.chooser.released(stream)

    async def until_durable(self) -> None:
        """Wait until all that was put is durable; for when nothing more is put."""
        while any(len(stream.outbox) for stream in self.streams):
            for stream in list(self.streams):
                await stream.drained()

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes held in all streams."""
        return self.budget.held_bytes

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Place streams and keep links until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                waiting = list(self._homeless.values())
                for stream in waiting:
                    if stream.ended and not len(stream.outbox):
                        self.forget(stream)
                        continue
                    target = self.chooser.choose(stream)
                    if target is None:
                        continue
                    del self._homeless[stream.id]
                    self._link(target).attach(stream)
                if self._homeless:
                    with trio.move_on_after(random.uniform(0.05, 0.2)):
                        await self._wake.wait()
                    self._wake.set()

    def take_homeless(self, stream: UplinkStream) -> bool:
        """Whether a stream has no link, and was waiting for one here: then it waits no longer."""
        return self._homeless.pop(stream.id, None) is not None

    def _link(self, target: Target) -> TargetLink:
        assert self._nursery is not None
        link = self.links.get(target.name)
        if link is None:
            link = self.links[target.name] = TargetLink(self, target)
            self._nursery.start_soon(self._carry, link)
        return link

    def _hold(self, name: str, seconds: float) -> None:
        self._not_before[name] = max(self._not_before.get(name, 0.0), trio.current_time() + seconds)

    def _pause_s(self, name: str) -> float:
        """Full jitter, but not before what the fleet said."""
        failures = self._failures.get(name, 0)
        settings = self.settings
        most = min(settings.backoff_most_s, settings.backoff_first_s * 2 ** min(failures, 20)) if failures else 0.0
        return max(random.uniform(0, most), self._not_before.pop(name, 0.0) - trio.current_time())

    async def _carry(self, link: TargetLink) -> None:
        name = link.target.name
        reason = ""
        began = trio.current_time()
        try:
            await trio.sleep(self._pause_s(name))
            await link.run(await self._dial(link.target))
        except* (Unreachable, Refused, Overloaded, LinkError, trio.BrokenResourceError) as group:
            error = first_of(group)
            reason = str(error) or type(error).__name__
            if isinstance(error, Refused):
                self.refused = error
                self.was_refused.set()
            if isinstance(error, Overloaded):
                link.hold_s = error.retry_after_s
        finally:
            failures = self._failures.pop(name, 0) if trio.current_time() - began < STEADY_S else 0
            # One that welcomes and then closes on what it is sent is not to be dialled without a pause either.
            if reason or not link.is_of_use or link.leaving:
                self._failures[name] = failures + 1
            if link.hold_s:
                self._hold(name, random.uniform(link.hold_s, 2 * link.hold_s))
            self.left(link)
            streams = link.leave()
            if not link.leaving:
                self.chooser.failed(name)
            for stream in streams:
                self.rehome(stream)
        if link.leaving and not streams:
            log.info("link left", target=name)
            return
        reason = reason or link.told or "closed by the other end"
        self.last_error = f"{name}: {reason}"
        if name not in self._failures:
            self._lost.over(name)
        if times := self._lost.again(name):
            log.warning("link lost", target=name, reason=reason, streams=len(streams), times=times)
