"""The budget of all streams: never exceeded by those that wait, in fair turns, given back by those that give up."""

import random

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from meter.budget import Budget


async def test_what_fits_is_held_at_once_and_what_does_not_waits_for_room() -> None:
    budget = Budget(100, org_share=1.0)
    await budget.acquire("a", 60)
    await budget.acquire("b", 40)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.acquire, "a", 30)
        await wait_all_tasks_blocked()
        assert (budget.held_bytes, budget.waiting) == (100, 1)
        budget.release("b", 40)
    assert (budget.held_bytes, budget.waiting) == (90, 0)


async def test_an_org_at_its_share_waits_while_another_goes_on() -> None:
    budget = Budget(100, org_share=0.5)
    await budget.acquire("stuck", 50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.acquire, "stuck", 1)
        await wait_all_tasks_blocked()
        for _ in range(10):
            await budget.acquire("fine", 50)
            budget.release("fine", 50)
        assert budget.waiting == 1
        nursery.cancel_scope.cancel()
    assert (budget.held_bytes, budget.waiting) == (50, 0)


async def test_a_batch_larger_than_the_share_passes_when_its_org_holds_nothing() -> None:
    budget = Budget(100, org_share=0.1)
    with trio.fail_after(1):
        await budget.acquire("a", 60)
    assert not budget.fits("a", 1)


async def test_one_that_gives_up_lets_those_behind_it_pass() -> None:
    budget = Budget(100, org_share=1.0)
    await budget.acquire("a", 90)
    passed = trio.Event()

    async def small() -> None:
        await budget.acquire("a", 10)
        passed.set()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(_until_cancelled, budget, scope)
        await wait_all_tasks_blocked()
        nursery.start_soon(small)
        await wait_all_tasks_blocked()
        assert not passed.is_set()
        scope.cancel()
        with trio.fail_after(1):
            await passed.wait()
    assert budget.held_bytes == 100


async def _until_cancelled(budget: Budget, scope: trio.CancelScope) -> None:
    with scope:
        await budget.acquire("a", 50)


@given(seed=st.integers(0, 1 << 32), share=st.sampled_from([0.3, 0.5, 1.0]))
def test_whoever_waits_is_served_and_the_limit_holds(seed: int, share: float) -> None:
    dice = random.Random(seed)
    budget = Budget(1000, org_share=share)
    most: dict[str, int] = {}

    async def exporter(org: str) -> None:
        for _ in range(5):
            size = dice.randrange(1, 250)
            await budget.acquire(org, size)
            assert budget.held_bytes <= 1000
            most[org] = max(most.get(org, 0), budget._held[org])
            await trio.lowlevel.checkpoint()
            budget.release(org, size)

    async def all_of_them() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(exporter, f"org-{number % 3}")

    trio.run(all_of_them)
    assert (budget.held_bytes, budget.waiting, budget._held) == (0, 0, {})
    assert max(most.values()) <= max(1000 * share, 250)
