"""Many crash states checked, in processes of their own: reading a broken map may end one with a signal."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from attrs import field, frozen

from tools.crashes.check import fault_of
from tools.crashes.record import Event, record
from tools.crashes.states import count, states

CHUNK = 500
"""States that a process checks at a time."""


@frozen
class Report:
    """What was tried, and what went wrong."""

    events: int
    possible: int
    """States that the recording gives."""
    checked: int
    faults: tuple[str, ...] = field(factory=tuple)


def run(*, groups: int, at_most: int, seed: int, progress: Callable[[int], None] = lambda _: None) -> Report:
    """Record a workload of so many appends, and check its crash states, a sample if there are more than `at_most`.

    Raises RuntimeError when the recording fails.
    """
    with tempfile.TemporaryDirectory(prefix="sapflow-crashes-") as directory:
        events = record(Path(directory), groups=groups, seed=seed)
    possible = count(events, seed)
    numbers = sorted(random.Random(seed).sample(range(possible), min(at_most, possible)))
    faults: list[str] = []
    checked = 0
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        chunks = [set(numbers[at : at + CHUNK]) for at in range(0, len(numbers), CHUNK)]
        running = [pool.submit(check, events, seed, chunk) for chunk in chunks]
        try:
            for done in as_completed(running):
                many, found = done.result()
                checked += many
                faults += found
                progress(many)
        except BrokenProcessPool:
            faults.append("a process that opened a state died by a signal")
    return Report(len(events), possible, checked, tuple(faults))


def check(events: Sequence[Event], seed: int, wanted: set[int]) -> tuple[int, list[str]]:
    """How many states were checked, and what is wrong with which."""
    faults = []
    for state in states(events, seed, wanted):
        if (fault := fault_of(state)) is not None:
            faults.append(f"state {state.number}, at event {state.moment}, {state.what}: {fault}")
    return len(wanted), faults
