"""An exporter's connection is placed on none of the collectors to which its socket cannot be given."""

from typing import Any, cast

import trio
from attrs import define, field

from balancer.exporter_carry import ExporterCarry
from meter.exporter_door import ExporterDoor
from sapflow.link.frames import Hint
from sapflow.runtime.handoff import Handed


@define
class Door:
    """Reads what was not given."""

    read: list[str] = field(factory=list)

    def may_admit(self, _peer: str) -> bool:
        return True

    def org_of(self, _peer: str) -> str | None:
        return "acme"

    async def serve(self, _stream: trio.SocketStream, peer: str) -> None:
        self.read.append(peer)


async def carried(beyond: set[str]) -> tuple[list[str], list[str], list[object]]:
    """Who was given the connection, who read it here, and what was placed and let go of."""
    given: list[str] = []
    left: list[object] = []
    door = Door()

    def place(link: object, _hint: Hint, tried: set[str]) -> tuple[str, str] | None:
        fit = [name for name in ("c1", "c2") if name not in tried]
        return (fit[0], "address") if fit else None

    async def give(name: str, _stream: trio.SocketStream, _handed: Handed) -> bool:
        given.append(name)
        return True

    carry = ExporterCarry(
        "exporter", cast(ExporterDoor, door), place, lambda: beyond, give, lambda _: None, left.append, "b1"
    )
    await carry.serve(cast(Any, object()), "192.0.2.1:9")
    return given, door.read, left


async def test_it_goes_to_one_that_can_be_given_a_socket() -> None:
    assert await carried(set()) == (["c1"], [], [])
    assert await carried({"c1"}) == (["c2"], [], [])


async def test_where_none_can_be_given_one_it_is_read_here_and_nothing_was_promised_to_any() -> None:
    assert await carried({"c1", "c2"}) == ([], ["192.0.2.1:9"], [])
