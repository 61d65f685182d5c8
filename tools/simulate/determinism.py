"""All that differs from run to run, taken from the seed instead: time, entropy, the order of tasks, garbage.

Held for as long as a simulation runs, and put back after it. Sets of objects that are told apart by where they lie in
memory are looked through in another order each time: there must be none whose order can be seen.
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy.random  # noqa: F401  takes entropy when it is first imported
import structlog
import trio

from tools.simulate.clock import VirtualClock
from tools.simulate.hosts import current_or_none
from tools.simulate.sockets import SimulatedSocket
from tools.simulate.trace import Trace

EPOCH_S = 1_750_000_000.0
"""The true time when a simulation begins."""


@contextmanager
def determined(seed: int, clock: VirtualClock, trace: Trace) -> Iterator[None]:
    """The same seed does the same in here."""
    entropy = random.Random(f"entropy {seed}")
    plain = random.Random

    class Seeded(plain):  # type: ignore[misc, valid-type]
        """One that is given no seed has it from ours."""

        def __init__(self, x: Any = None) -> None:
            super().__init__(entropy.getrandbits(64) if x is None else x)

    def now_s() -> float:
        host = current_or_none()
        return EPOCH_S + clock.now + (host.clock_off_s if host is not None else 0.0)

    def pid() -> int:
        host = current_or_none()
        return host.number if host is not None else 1

    before = random.getstate()
    with ExitStack() as stack:
        for module, name, value in (
            (time, "time", now_s),
            (time, "time_ns", lambda: int(now_s() * 1e6) * 1000),
            (time, "monotonic", lambda: clock.now),
            (os, "getpid", pid),
            (os, "urandom", entropy.randbytes),
            (random, "_urandom", entropy.randbytes),
            (random, "Random", Seeded),
            (secrets, "token_hex", lambda size=32: entropy.randbytes(size).hex()),
            (trio.lowlevel, "wait_readable", _wait_readable(trio.lowlevel.wait_readable)),
            (trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (trio._core._run, "_r", plain(f"order {seed}")),
        ):
            stack.enter_context(patch.object(module, name, value))
        stack.enter_context(_logged_to(trace))
        stack.enter_context(_without_garbage_collection())
        random.seed(f"random {seed}")
        stack.callback(random.setstate, before)
        yield


def _wait_readable(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def wait_readable(what: Any) -> None:
        await (what.wait_readable() if isinstance(what, SimulatedSocket) else real(what))

    return wait_readable


@contextmanager
def _logged_to(trace: Trace) -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(processors=[trace.log], wrapper_class=structlog.make_filtering_bound_logger(20))
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """It ends generators whenever it comes; those that a cycle keeps are ended by `collect`, at its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    # What was there before is not looked through again and again.
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        if was_enabled:
            gc.enable()


async def collect(interval_s: float = 60.0) -> None:
    """Collect garbage at virtual times, until cancelled."""
    while True:
        await trio.sleep(interval_s)
        gc.collect()
