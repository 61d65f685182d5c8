"""The faults: what is done to which process, or to the meters' connections, for how long.

kill     SIGKILL
stop     SIGSTOP for a while, then SIGCONT
restart  SIGTERM, and the supervisor starts it again
cut, reset, half-open, slow   the connections between the meters and the balancer's door, through a fault proxy
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable

import trio
from attrs import field, frozen

from tools.chaos.proxy import FaultProxy
from tools.fleet import Fleet

ON_PROCESSES = ("kill", "stop", "restart")
ON_CONNECTIONS = ("cut", "reset", "half-open", "slow")
FAULTS = (*ON_PROCESSES, *ON_CONNECTIONS)


@frozen
class Plan:
    """Which faults may happen, to which processes (none named: any), how often."""

    kinds: tuple[str, ...] = ("kill",)
    victims: tuple[str, ...] = ()
    every_s: float = 5.0
    stop_s: float = 3.0
    seed: int = 0
    drain_s: float = 60.0
    victim_choice: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "victim_choice", random.Random(self.seed))

    def draw(self, processes: list[str]) -> tuple[str, str]:
        """The next fault and whom it hits."""
        kind = self.victim_choice.choice(self.kinds)
        if kind in ON_CONNECTIONS:
            return kind, "meters' connections"
        among = [name for name in processes if not self.victims or name in self.victims]
        return kind, self.victim_choice.choice(sorted(among))


async def inflict(kind: str, victim: str, fleet: Fleet, proxy: FaultProxy, plan: Plan) -> bool:
    """Let a fault happen, and last as long as it does; False when its victim was not there."""
    on_connections: dict[str, Callable[[], Awaitable[None]]] = {
        "cut": lambda: _now(proxy.cut),
        "reset": lambda: _now(proxy.reset),
        "half-open": lambda: proxy.half_open(plan.stop_s),
        "slow": lambda: proxy.slow(plan.stop_s),
    }
    if kind in on_connections:
        await on_connections[kind]()
        return True
    pid = fleet.processes()[victim]
    try:
        match kind:
            case "kill":
                os.kill(pid, signal.SIGKILL)
            case "restart":
                os.kill(pid, signal.SIGTERM)
            case "stop":
                os.kill(pid, signal.SIGSTOP)
                try:
                    await trio.sleep(plan.stop_s)
                finally:
                    os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return False  # it is on its way back from the last fault
    return True


async def _now(fault: Callable[[], int]) -> None:
    fault()
