"""Who is heard of: one task for all sessions of a process that has thousands, instead of one for each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

LOOK_S = 1.0
MOST_AT_ONCE = 500
"""Sessions looked at between two passes of the scheduler."""


class Watched(Protocol):
    """A session that asks for a sign of the other end, or ends, when it has heard nothing for too long."""

    def look(self, patience: float = 1.0) -> None:
        """Called now and then. `patience`: times that it waits with its first question as long as it might."""


class Watch:
    """Looks after those that are `kept`. `run()` is its task."""

    def __init__(self) -> None:
        self._patience: dict[Watched, float] = {}

    @contextmanager
    def kept(self, session: Watched) -> Iterator[None]:
        """Look after a session meanwhile. Those that came together are not all asked at the same moment."""
        self._patience[session] = random.uniform(1.0, 1.5)
        try:
            yield
        finally:
            del self._patience[session]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            for number, session in enumerate(list(self._patience), 1):
                if session in self._patience:
                    session.look(self._patience[session])
                if number % MOST_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
