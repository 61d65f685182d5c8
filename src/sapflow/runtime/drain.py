"""That a process is to end gently: asked once, by whoever runs it, and heard by its role.

A role that is asked hands on what it has and ends by itself, at the deadline at the latest. Nothing durable depends on
it: what is not handed on by then is sent again by whoever still has it, as when the process is killed.
"""

from __future__ import annotations

from typing import Literal

import trio
from attrs import define, field

Successor = Literal["none", "next", "there"]
"""Who does the work of a process that is drained: nobody in its place; one that is started when it has ended; one that
is there already, on the same sockets."""


@define(eq=False)
class Drain:
    """One process's."""

    deadline: float = float("inf")
    """By the clock of this process's event loop."""
    successor: Successor = "none"
    _asked: trio.Event = field(factory=trio.Event)

    @property
    def is_asked(self) -> bool:
        """Whether it is to end."""
        return self._asked.is_set()

    @property
    def left_s(self) -> float:
        """Until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline - trio.current_time())

    def ask(self, within_s: float, *, successor: Successor = "none") -> None:
        """End within so many seconds. Who asks again changes nothing."""
        if not self.is_asked:
            self.successor = successor
            self.deadline = trio.current_time() + within_s
            self._asked.set()

    async def asked(self) -> None:
        """Wait until it is to end."""
        await self._asked.wait()
