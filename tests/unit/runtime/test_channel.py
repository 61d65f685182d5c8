"""A channel bounded in bytes: in order, never more than its limit but for one item that is larger."""

import random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sapflow.runtime.channel import ByteChannel


async def test_a_sender_waits_while_the_limit_is_inside() -> None:
    channel: ByteChannel[str] = ByteChannel(100)
    assert channel.try_send("a", 60)
    assert not channel.try_send("b", 60)
    with trio.move_on_after(0.05) as waited:
        await channel.send("b", 60)
    assert waited.cancelled_caught
    assert (channel.fill_bytes, len(channel)) == (60, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.send, "b", 60)
        assert await channel.receive_all(1000) == ["a"]
    assert await channel.receive_all(1000) == ["b"]
    assert channel.fill_bytes == 0


async def test_an_item_larger_than_the_limit_passes_when_nothing_is_inside() -> None:
    channel: ByteChannel[str] = ByteChannel(100)
    with trio.fail_after(5):
        await channel.send("large", 1000)
        assert not channel.try_send("b", 1)
        assert await channel.receive_all(1) == ["large"]
    assert channel.try_send("b", 1)


async def test_what_is_received_at_once_is_bounded_and_at_least_one_item() -> None:
    channel: ByteChannel[int] = ByteChannel(1000)
    for number in range(5):
        assert channel.try_send(number, 100)
    assert await channel.receive_all(250) == [0, 1]
    assert await channel.receive_all(1) == [2]
    assert await channel.receive_all(1000) == [3, 4]


async def test_a_receiver_waits_for_an_item() -> None:
    channel: ByteChannel[int] = ByteChannel(10)
    found: list[int] = []

    async def receive() -> None:
        found.extend(await channel.receive_all(10))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            assert found == []
            assert channel.try_send(7, 1)
    assert found == [7]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 100), st.integers(1, 100), st.integers(0, 99)
)
def test_everything_comes_out_once_in_order_and_is_counted(sizes: list[int], limit: int, most: int, seed: int) -> None:
    channel: ByteChannel[tuple[int, int]] = ByteChannel(limit)
    received: list[tuple[int, int]] = []
    pause = random.Random(seed)

    async def send() -> None:
        for item in enumerate(sizes):
            await channel.send(item, item[1])
            assert channel.fill_bytes <= max(limit, item[1])
            if pause.random() < 0.3:
                await trio.lowlevel.checkpoint()

    async def receive() -> None:
        while len(received) < len(sizes):
            received.extend(await channel.receive_all(most))

    async def both() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(receive)

    trio.run(both)
    assert received == list(enumerate(sizes))
    assert channel.counts.items_in == channel.counts.items_out == len(sizes)
    assert channel.counts.bytes_in == channel.counts.bytes_out == sum(sizes)
    assert channel.fill_bytes == 0


def test_a_cancelled_sender_leaves_nothing_behind() -> None:
    channel: ByteChannel[str] = ByteChannel(10)

    async def scenario() -> None:
        assert channel.try_send("a", 10)
        with trio.move_on_after(0.01):
            await channel.send("b", 10)
        assert await channel.receive_all(100) == ["a"]
        with trio.move_on_after(0.01):
            await channel.receive_all(100)
            pytest.fail("nothing was to be received")

    trio.run(scenario)
    assert channel.counts.items_in == 1
