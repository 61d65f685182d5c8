"""A task for each of those that there are: begun, ended and begun anew with them."""

import trio
from trio.testing import wait_all_tasks_blocked

from sapflow.runtime.each import TaskEach


async def test_a_task_begins_and_ends_with_whom_it_is_for_and_anew_at_another_address() -> None:
    running: set[tuple[str, str]] = set()
    begun: list[tuple[str, str]] = []

    async def keep(name: str, address: str) -> None:
        begun.append((name, address))
        running.add((name, address))
        try:
            await trio.sleep_forever()
        finally:
            running.discard((name, address))

    tasks = TaskEach(keep)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tasks.run)
            for now in ({"c1": "a", "c2": "b"}, {"c1": "a", "c2": "b"}, {"c1": "z", "c2": "b"}, {"c2": "b"}, {}):
                tasks.of(now)
                await wait_all_tasks_blocked()
                assert running == set(now.items())
            nursery.cancel_scope.cancel()
    assert sorted(begun) == [("c1", "a"), ("c1", "z"), ("c2", "b")]
