"""Who is not heard of is asked, and then ended: by a task of its own, or by the one of many sessions."""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from sapflow.link import Connection, HelloReceived, Side
from sapflow.link.frames import Hint
from sapflow.runtime.session import LinkSession
from sapflow.runtime.watch import LOOK_S, MOST_AT_ONCE, Watch

IDLE_S = 30.0


def a_session(stream: trio.abc.Stream, watch: Watch | None) -> LinkSession:
    session = LinkSession(
        stream, Connection(Side.CLIENT), peer="p", idle_timeout_s=IDLE_S, max_unsent_bytes=1 << 20, watch=watch
    )
    session.send(session.connection.hello(Hint("acme", "m1"), role="meter", token="t"))
    return session


async def a_peer(stream: trio.abc.Stream, heard: Callable[[bytes], Awaitable[None]]) -> None:
    """Welcomes the session; `heard` is given what it would answer to each ping."""
    peer = Connection(Side.SERVER)
    async for data in stream:
        if any(isinstance(event, HelloReceived) for event in peer.receive(bytes(data))):
            await stream.send_all(peer.welcome(name="c1", org="acme"))
        for reply in peer.take_replies():
            await heard(reply)


@pytest.mark.parametrize("is_shared", [True, False])
async def test_a_link_that_says_nothing_is_asked_and_then_cut(autojump_clock: MockClock, is_shared: bool) -> None:
    watch, asked, began = Watch(), list[float](), trio.current_time()
    ours, theirs = memory_stream_pair()

    async def note(_reply: bytes) -> None:
        asked.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        nursery.start_soon(a_peer, theirs, note)
        async with a_session(ours, watch if is_shared else None).open() as session:
            async for _ in session.events():
                continue
        nursery.cancel_scope.cancel()
    assert IDLE_S < trio.current_time() - began <= IDLE_S * 4 / 3 + 1
    assert 2 <= len(asked) <= 5
    assert IDLE_S / 4 <= asked[0] <= IDLE_S * 2 / 3 + 1


@pytest.mark.parametrize("is_shared", [True, False])
async def test_a_link_that_answers_is_kept_and_not_asked_too_often(autojump_clock: MockClock, is_shared: bool) -> None:
    watch, asked = Watch(), 0
    ours, theirs = memory_stream_pair()

    async def answer(reply: bytes) -> None:
        nonlocal asked
        asked += 1
        await theirs.send_all(reply)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        nursery.start_soon(a_peer, theirs, answer)
        with trio.move_on_after(20 * IDLE_S) as kept:
            async with a_session(ours, watch if is_shared else None).open() as session:
                async for _ in session.events():
                    continue
        assert kept.cancelled_caught
        nursery.cancel_scope.cancel()
    assert 20 <= asked <= 60


class Counted:
    """How often it was looked at, and with what patience."""

    def __init__(self) -> None:
        self.patience: list[float] = []

    def look(self, patience: float = 1.0) -> None:
        self.patience.append(patience)


async def test_each_of_many_is_looked_at_as_often_and_those_that_came_together_are_not_as_patient(
    autojump_clock: MockClock,
) -> None:
    watch, many = Watch(), [Counted() for _ in range(2 * MOST_AT_ONCE + 1)]
    with watch.kept(many[0]):
        with trio.move_on_after(3.5 * LOOK_S):
            await watch.run()
    with ExitStack() as stack:
        for one in many:
            stack.enter_context(watch.kept(one))
        with trio.move_on_after(3.5 * LOOK_S):
            await watch.run()
    assert Counter(len(one.patience) for one in many) == {6: 1, 3: len(many) - 1}
    patience = [one.patience[-1] for one in many]
    assert 1.0 <= min(patience) < 1.1
    assert 1.4 < max(patience) <= 1.5


async def test_one_that_ends_while_others_are_looked_at_is_looked_at_no_more(autojump_clock: MockClock) -> None:
    watch, last = Watch(), Counted()
    kept = watch.kept(last)

    class Ending(Counted):
        def look(self, patience: float = 1.0) -> None:
            if not self.patience:
                kept.__exit__(None, None, None)
            super().look(patience)

    with watch.kept(Ending()):
        kept.__enter__()
        with trio.move_on_after(2.5 * LOOK_S):
            await watch.run()
    assert last.patience == []
