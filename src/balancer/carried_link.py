"""A meter's link while the link door carries it: how much it has carried, and how it is stopped, or left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from sapflow.link.frames import Hint


@define
class Carriage:
    """Bytes carried, of one link or of all that went to one collector."""

    bytes_in: int = 0
    bytes_out: int = 0
    bytes_back: int = 0


@define(eq=False)
class CarriedLink:
    """A meter's link while it is carried."""

    collector: str
    hint: Hint
    carriage: Carriage = field(factory=Carriage)
    scope: trio.CancelScope | None = None
    """The relay's, once it is carried."""
    answered_in: int = 0
    answered_back: int = 0
    """As they were when bytes last came back."""
    seen_as: tuple[str, ...] = ()
    """The addresses that its collector may see it come from: the meter's if it believes us, else ours."""
    into: bytes = b""
    """What was read of the meter and goes to its collector first, …"""
    back: bytes = b""
    """… and what goes back first: of a link that another process left, or that is left."""
    leave: LeaveLink | None = None
    """How it is to be left to a successor, until that is decided."""

    def is_answered(self) -> bool:
        """Whether bytes came back since this was asked last."""
        if self.carriage.bytes_back == self.answered_back:
            return False
        self.answered_in, self.answered_back = self.carriage.bytes_in, self.carriage.bytes_back
        return True

    @property
    def unanswered_bytes(self) -> int:
        """That went in since bytes last came back."""
        return self.carriage.bytes_in - self.answered_in


LeaveLink = Callable[[CarriedLink, trio.SocketStream, trio.SocketStream], Awaitable[bool]]
"""Leaves a link, the meter's socket and its collector's, to a successor: whether it is that one's now."""
