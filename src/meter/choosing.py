"""Where streams go: what is asked of whoever decides it, and the one who always says the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from meter.uplink_stream import UplinkStream


@frozen
class Target:
    """A collector, or a door to one."""

    name: str
    address: str
    want: str = ""
    """The collector that a door is asked for, in the hint."""


class Chooser(Protocol):
    """Where streams go."""

    def choose(self, stream: UplinkStream) -> Target | None:
        """The target for a stream; None when none can take it now."""

    def failed(self, target: str) -> None:
        """A link to this target broke or could not be made."""

    def leaving(self, target: str, deadline_s: float) -> None:
        """A link to this target is to be left by then: streams go elsewhere."""

    def released(self, stream: UplinkStream) -> None:
        """A stream is no more."""


@frozen
class FixedTarget:
    """Everything goes through one door; who is behind it is the door's affair."""

    target: Target

    def choose(self, stream: UplinkStream) -> Target | None:
        return self.target

    def failed(self, target: str) -> None:
        """There is no other."""

    def leaving(self, target: str, deadline_s: float) -> None:
        """The door places the next link elsewhere."""

    def released(self, stream: UplinkStream) -> None:
        """Nothing is kept about streams."""
