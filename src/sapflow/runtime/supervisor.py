"""Child processes kept running: started, watched, started again with back-off, drained, stopped in order.

A child says `{"event": "ready", …}` as its first line on standard output, and `{"event": "drained", …}` as its last one
when it was drained; its log goes to standard error. Its standard input is a pipe: the line `drain SECONDS` asks it to
end gently (`drain SECONDS next` one that is started anew then, `drain SECONDS there` one whose successor is there), and
the line `begin` one that was started with `--successor` to take up the work of another. When the pipe ends, as it does
with this process however that ends, a child that was told `--supervised` ends too. (The kernel's own way,
PR_SET_PDEATHSIG, goes by the thread that started the child, and Trio's threads come and go.)

A child that dies is started by giving its order to a spare, where there is one: see `spare.py`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import structlog
import trio
from attrs import define, field, frozen

from sapflow.errors import SapflowError
from sapflow.runtime.life import Life, start_process
from sapflow.runtime.spare import Order, Spare

log = structlog.get_logger()

READY_TIMEOUT_S = 60.0
"""A machine that starts many things at once may take long; a process that hangs is rarer. A third of it is told."""
STOP_TIMEOUT_S = 10.0
STEADY_S = 2.0
"""A process that lasted so long did start: its end is no reason to wait before the next."""
BACKOFF_MOST_S = 5.0
LATE_S = 5.0
"""So long after its deadline a child that was to be drained is killed."""


@define(eq=False)
class Child:
    """One role's process; all but the first five fields are its supervisor's."""

    name: str
    command: list[str]
    arguments: list[str] = field(factory=list)
    """What a spare is told, to be what `command` starts; without them it is always the command that starts it."""
    sockets: dict[str, int] = field(factory=dict)
    """Listening sockets that it is given, by what they are for: they outlive it."""
    successor_first: bool = False
    """When it is started anew, its successor is ready before it is drained."""
    pid: int = 0
    starts: int = 0
    addresses: dict[str, str] = field(factory=dict)
    state: str = "starting"
    """`running`, `draining`, `drained` (it stays away until it is wanted again), or `starting`."""
    log_place: str = "above"


@frozen
class Drained:
    """How a child ended that was to end gently; `clean`: it had handed on everything."""

    name: str
    pid: int
    clean: bool
    seconds: float


class Supervisor:
    """Keeps children alive. `events` is called with each thing that happens to one."""

    def __init__(
        self,
        events: Callable[[dict[str, Any]], None],
        *,
        spare: Spare | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self.children: dict[str, Child] = {}
        self._keepers: dict[str, _Keeper] = {}
        self._events = events
        self._spare = spare
        self._ready_timeout_s = ready_timeout_s
        self._stop_timeout_s = stop_timeout_s

    async def keep(self, child: Child, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a child until cancelled; started when it is ready for the first time.

        Raises SapflowError when it does not become ready the first time.
        """
        self.children[child.name] = child
        self._keepers[child.name] = keeper = _Keeper(
            child, self._events, self._spare, self._ready_timeout_s, self._stop_timeout_s
        )
        await keeper.run(task_status)

    async def drain(self, name: str, within_s: float) -> Drained:
        """Have a child end gently, and leave it away. Raises SapflowError when it does not run."""
        return await self._keeper(name).drain(within_s)

    async def restart(self, name: str, within_s: float) -> Drained | None:
        """Drain a child, and start it again; None when it was away. Raises SapflowError when it is not ready then."""
        return await self._keeper(name).restart(within_s)

    def _keeper(self, name: str) -> _Keeper:
        keeper = self._keepers.get(name)
        if keeper is None:
            raise SapflowError(f"there is no process '{name}'; there are {', '.join(sorted(self._keepers))}")
        return keeper


class _Keeper:
    """One child's processes, one after the other. `run()` is its task tree."""

    def __init__(
        self,
        child: Child,
        events: Callable[[dict[str, Any]], None],
        spare: Spare | None,
        ready_timeout_s: float,
        stop_timeout_s: float,
    ) -> None:
        self._child = child
        self._events = events
        self._spare = spare
        self._ready_timeout_s = ready_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._life: Life | None = None
        self._is_wanted = True
        self._is_busy = False
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled, or the first process does not become ready."""
        unready = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            life = await self._start()
            if life.is_up:
                self._took_over(life, "started")
                task_status.started()
                await self._keep()
            else:
                unready = life.why
            nursery.cancel_scope.cancel()
        if unready is not None:
            child = self._child
            if unready.startswith("it cannot be started"):
                raise SapflowError(f"{child.name} {unready.removeprefix('it ')}")
            raise SapflowError(f"{child.name} did not start: {unready}; its log ({child.log_place}) says why")

    async def _keep(self) -> None:
        failures = 0
        while True:
            life = await self._end_of_last()
            self._tell_end(life)
            if life.is_drained or not self._is_wanted:
                self._child.state = "drained"
                failures = 0
                await self._until(lambda: self._is_wanted)
            else:
                failures = 0 if life.lasted_s > STEADY_S else failures + 1
                await trio.sleep(backoff_s(failures))
            self._child.state = "starting"
            # One that fails again and again leaves the spare to those that run.
            life = await self._start(may_be_spare=failures <= 1)
            if life.is_up:
                self._took_over(life, "restarted")

    async def _end_of_last(self) -> Life:
        """The end of the process that is the child now: a successor may take over before."""
        while True:
            life = self._life
            assert life is not None
            await life.over.wait()
            if self._life is life:
                return life

    async def _start(self, *, may_be_spare: bool = False) -> Life:
        """A new process, when it is up or never will be."""
        life = self._life = self._new_life(may_be_spare=may_be_spare)
        await self._begin(life)
        self._child.pid = life.pid
        return life

    async def _begin(self, life: Life) -> None:
        assert self._nursery is not None
        with self._spare.aside() if self._spare is not None else nullcontext():
            self._nursery.start_soon(life.run)
            await life.settled.wait()

    def _new_life(self, *options: str, may_be_spare: bool) -> Life:
        child, spare = self._child, self._spare

        async def begin() -> trio.Process:
            process = None
            if may_be_spare and spare is not None and child.arguments:
                process = await spare.take(Order([*child.arguments, *options], child.sockets))
            return process or await start_process([*child.command, *options], child.sockets)

        return Life(child.name, begin, self._ready_timeout_s, self._stop_timeout_s, self._note_change)

    def _took_over(self, life: Life, how: str) -> None:
        child = self._child
        self._life = life
        child.pid, child.addresses, child.state = life.pid, life.addresses, "running"
        child.starts += 1
        self._events({"event": how, "name": child.name, "pid": life.pid})
        self._note_change()

    def _tell_end(self, life: Life) -> None:
        who = {"name": self._child.name, "pid": life.pid}
        if life.is_drained:
            self._events({"event": "drained", **who, "clean": life.is_clean})
        else:
            why = {} if life.why is None else {"reason": life.why}
            self._events({"event": "died", **who, "code": life.code, **why})

    async def drain(self, within_s: float) -> Drained:
        with _Turn(self):
            life = self._running()
            self._is_wanted = False
            return await self._drain(life, within_s, "none")

    async def restart(self, within_s: float) -> Drained | None:
        with _Turn(self):
            if self._child.state == "drained":
                await self._again(None)
                return None
            before = self._running()
            if self._child.successor_first:
                return await self._succeed(before, within_s)
            self._is_wanted = False
            drained = await self._drain(before, within_s, "next")
            await self._again(before)
            return drained

    def _running(self) -> Life:
        life = self._life
        if self._child.state != "running" or life is None:
            raise SapflowError(f"{self._child.name} is not running: it is {self._child.state}; try again when it is")
        return life

    async def _drain(self, life: Life, within_s: float, successor: Literal["none", "next"] | Life) -> Drained:
        name, began = self._child.name, trio.current_time()
        if self._life is life:
            self._child.state = "draining"
        self._events({"event": "draining", "name": name, "pid": life.pid, "deadline_s": within_s})
        if isinstance(successor, Life):
            await life.ask_to_drain(within_s, "there")
            await successor.ask_to_begin()
        else:
            await life.ask_to_drain(within_s, successor)
        with trio.move_on_after(within_s + LATE_S):
            await life.over.wait()
        if not life.over.is_set():
            log.warning("process killed", name=name, pid=life.pid, reason="it did not end when it was to be drained")
            life.kill()
            await life.over.wait()
        return Drained(name, life.pid, life.is_clean, round(trio.current_time() - began, 3))

    async def _again(self, before: Life | None) -> None:
        """Start it, and wait until it is ready."""
        before = before or self._life
        self._is_wanted = True
        self._note_change()

        def is_settled() -> bool:
            life = self._life
            if life is None or life is before or not life.settled.is_set():
                return False
            return self._child.state == "running" or not life.is_up

        await self._until(is_settled)
        assert self._life is not None
        if not self._life.is_up:
            raise SapflowError(
                f"{self._child.name} was drained and did not start again: {self._life.why}; its log "
                f"({self._child.log_place}) says why. It is tried again and again"
            )

    async def _succeed(self, before: Life, within_s: float) -> Drained:
        """Another process first; the one that was is drained when that is ready."""
        successor = self._new_life("--successor", may_be_spare=True)
        await self._begin(successor)
        if not successor.is_up:
            raise SapflowError(
                f"{self._child.name} runs on as it was: its successor did not start: {successor.why}; its log "
                f"({self._child.log_place}) says why"
            )
        if self._life is not before or before.over.is_set():
            # It died meanwhile, and is started anew as whoever dies: there are not to be two.
            successor.kill()
            await successor.over.wait()
            raise SapflowError(f"{self._child.name} ended before its successor was ready, and is started anew")
        self._took_over(successor, "restarted")
        drained = await self._drain(before, within_s, successor)
        self._tell_end(before)
        return drained

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.wait()


class _Turn:
    """One who drains or restarts a child at a time."""

    def __init__(self, keeper: _Keeper) -> None:
        self._keeper = keeper

    def __enter__(self) -> None:
        if self._keeper._is_busy:
            raise SapflowError(f"{self._keeper._child.name} is being drained or restarted already; wait until it is")
        self._keeper._is_busy = True

    def __exit__(self, *_: object) -> None:
        self._keeper._is_busy = False


def backoff_s(failures: int) -> float:
    """How long until a child is started again, when it ended so often in a row without a steady time between."""
    return random.uniform(0, min(BACKOFF_MOST_S, 0.05 * 2 ** min(failures, 10)))


def role_arguments(role: str, name: str, config: str) -> list[str]:
    """With which the command `sapflow` is a role's process that a supervisor keeps."""
    return [role, "--config", config, "--name", name, "--supervised"]


def sapflow_command(arguments: Sequence[str]) -> list[str]:
    """How this very `sapflow` is started with them."""
    return [sys.executable, "-m", "sapflow", *arguments]
