"""Meters' streams on this collector: what each brings, which a balancer may have moved, and who ignores a move.

No await here; the clock is given. Streams of balancers' intakes are not among them: those move theirs themselves.

Rule 1: a stream that came by a move, or was asked to move, is not to be moved again for a while. So two balancers that
        disagree, or one that was restarted and has forgotten, cannot send a meter round in circles.
        One that leaves a collector which does not work is moved all the same: where it is, nothing of it goes on.
Rule 2: a stream that is still here `timeout_s` after it was asked to go ignored it, or its meter could not make another
        link. With the `most_ignored`-th time it is left alone for long: what it has works, and all others go round it.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import nlargest

import structlog
from attrs import define, field, frozen

from collector.endpoints import StreamState
from sapflow.link import StreamId
from sapflow.runtime.session import LinkSession

log = structlog.get_logger()

SMOOTHING = 0.3
"""Of a new reading: meters send about once a second, so that one reading alone says little."""


@frozen
class CarriedSettings:
    """How moves are asked for."""

    cooldown_s: float = 300.0
    timeout_s: float = 10.0
    most_ignored: int = 3
    left_alone_s: float = 3600.0


@define(eq=False)
class CarriedStream:
    """One stream on a meter's link."""

    state: StreamState
    session: LinkSession
    handle: int
    meter: str
    rest_until: float
    """It is not to be moved before."""
    measured_at: float
    seen_bytes: int
    rate: float = 0.0
    asked_at: float | None = None
    asked_to: str = ""
    ignored: int = 0


@define
class Carried:
    """All of them, by the link's own key and by their id."""

    settings: CarriedSettings
    moves_asked: int = 0
    moves_ignored: int = 0
    _streams: dict[Hashable, CarriedStream] = field(factory=dict)
    _by_id: dict[StreamId, CarriedStream] = field(factory=dict)

    def __len__(self) -> int:
        return len(self._streams)

    def opened(
        self,
        key: Hashable,
        state: StreamState,
        session: LinkSession,
        handle: int,
        meter: str,
        now: float,
        *,
        moved: bool,
    ) -> None:
        """A meter opened a stream on its link; `moved`: it came here since it was asked to."""
        rest_until = now + self.settings.cooldown_s if moved else now
        stream = CarriedStream(state, session, handle, meter, rest_until, now, state.taken_bytes)
        self._streams[key] = self._by_id[state.id] = stream

    def ended(self, key: Hashable) -> None:
        """A stream, or its link, ended."""
        stream = self._streams.pop(key, None)
        if stream is not None and self._by_id.get(stream.state.id) is stream:
            del self._by_id[stream.state.id]

    def measure(self, now: float) -> None:
        """Take a reading of all."""
        for stream in self._streams.values():
            passed = now - stream.measured_at
            if passed <= 0:
                continue
            total = stream.state.taken_bytes
            reading = (total - stream.seen_bytes) / passed
            stream.rate += (SMOOTHING if stream.rate else 1.0) * (reading - stream.rate)
            stream.seen_bytes, stream.measured_at = total, now

    def largest(self, most: int) -> list[CarriedStream]:
        """Those that bring most, and anything at all."""
        bringing = (stream for stream in self._streams.values() if stream.rate >= 1.0)
        return nlargest(most, bringing, key=lambda stream: stream.rate)

    def is_movable(self, stream: CarriedStream, now: float) -> bool:
        """Whether a balancer may have it moved now."""
        return stream.asked_at is None and now >= stream.rest_until

    def ask(self, stream_id: bytes, to: str, address: str, now: float, *, leaves: bool = False) -> str:
        """Ask a stream's meter to take it to another collector: "", or why it was not asked.

        `leaves`: it goes since this collector does not work for it.
        """
        stream = self._by_id.get(StreamId(stream_id))
        if stream is None:
            return "it is not here"
        if stream.asked_at is not None or not (leaves or self.is_movable(stream, now)):
            return "it was moved or asked to move lately"
        stream.asked_at, stream.asked_to = now, to
        self.moves_asked += 1
        stream.session.send(stream.session.connection.move(stream.handle, to, address))
        return ""

    def note_ignored(self, now: float) -> None:
        """Find those that were asked and are still here."""
        settings = self.settings
        for stream in self._streams.values():
            if stream.asked_at is None or now < stream.asked_at + settings.timeout_s:
                continue
            stream.asked_at = None
            stream.ignored += 1
            self.moves_ignored += 1
            who = {"stream": stream.state.id.hex(), "meter": stream.meter, "destination": stream.asked_to}
            if stream.ignored % settings.most_ignored:
                log.info("move ignored", **who, times=stream.ignored)
            else:
                stream.rest_until = now + settings.left_alone_s
                log.warning(
                    "move ignored",
                    **who,
                    times=stream.ignored,
                    meaning=f"it works where it is, and is left alone for {settings.left_alone_s:g} s",
                    advice="the meter is of another version, or cannot make a second link through the balancer's door",
                )
