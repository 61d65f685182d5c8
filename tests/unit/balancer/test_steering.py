"""Control links: what collectors tell is read strictly, and one that tells nonsense ends its own link and no other."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from balancer.steering import Steering, Told
from sapflow.errors import LinkError, Unreachable
from sapflow.link import Connection, HelloReceived, Noticed, Side

GOOD: dict[str, Any] = {
    "bytes_per_s": 10.0,
    "lag_s": 0.0,
    "held_bytes": 0,
    "budget_bytes": 100,
    "up_s": 5.0,
    "streams": [["0f" * 16, "acme", 7, 1, "192.0.2.1:9", "m1"]],
    "orgs": ["acme"],
}


class Collector:
    """The far end of control links; tells what it is given to tell."""

    def __init__(self, nursery: trio.Nursery, *tells: dict[str, Any]) -> None:
        self.links = 0
        self.asked: list[dict[str, Any]] = []
        self._tells = tells
        self._nursery = nursery

    async def dial(self, address: str) -> trio.abc.Stream:
        if address == "nowhere":
            raise Unreachable("nobody is there")
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self._serve, ours)
        return theirs

    async def _serve(self, stream: trio.abc.Stream) -> None:
        self.links += 1
        connection = Connection(Side.SERVER)
        async with stream:
            async for data in stream:
                for event in connection.receive(bytes(data)):
                    match event:
                        case HelloReceived(_, fields):
                            assert (fields["role"], fields["token"]) == ("balancer", "f-token")
                            await stream.send_all(connection.welcome())
                            for told in self._tells:
                                await stream.send_all(connection.notice(kind="load", **told))
                        case Noticed(fields):
                            self.asked.append(fields)


@pytest.mark.parametrize(
    "wrong",
    [
        {"streams": [["xyz", "acme", 7, 1, "x", "m"]]},
        {"streams": [["0f" * 16, "acme", 7]]},
        {"streams": 7},
        {"bytes_per_s": "much"},
        {"held_bytes": None},
        {"orgs": 3},
    ],
)
def test_what_is_not_a_load_is_refused(wrong: dict[str, Any]) -> None:
    assert Told.read(GOOD).streams[0].meter == "m1"
    with pytest.raises(LinkError, match="not told as it should be"):
        Told.read(GOOD | wrong)


async def test_nonsense_ends_its_own_link_which_is_made_again_with_pauses(autojump_clock: MockClock) -> None:
    told: list[str] = []
    async with trio.open_nursery() as nursery:
        mad, good = Collector(nursery, {"streams": 7}), Collector(nursery, GOOD)

        async def dial(address: str) -> trio.abc.Stream:
            return await (mad if address == "mad" else good).dial(address)

        steering = Steering("b1", "f-token", dial, lambda name, _: told.append(name))
        nursery.start_soon(steering.run)
        steering.collectors({"c1": "mad", "c2": "good", "c3": "nowhere"})
        await trio.sleep(5)
        assert set(told) == {"c2"}
        assert 3 <= mad.links <= 20
        assert not steering.ask("c3", b"s" * 16, "c2", "")
        assert steering.ask("c2", b"s" * 16, "c1", "")
        await trio.sleep(1)
        assert good.asked == [{"kind": "move", "stream": (b"s" * 16).hex(), "to": "c1", "address": "", "leaves": False}]
        steering.collectors({})
        await trio.sleep(1)
        assert not steering.ask("c2", b"s" * 16, "c1", "")
        nursery.cancel_scope.cancel()
