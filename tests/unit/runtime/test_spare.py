"""A spare becomes what it is ordered to be; whatever is wrong with it, another process is started in its place."""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from sapflow.runtime import spare as module
from sapflow.runtime.spare import PAUSE_MOST_S, PAUSE_S, Order, Spare, await_order, is_ordered

WAITING = """
import json, socket, sys
from sapflow.runtime.spare import await_order
order = await_order(socket.socket(fileno=int(sys.argv[-1])))
if order is not None:
    doors = {name: socket.socket(fileno=number) for name, number in order.sockets.items()}
    print(json.dumps([order.arguments, {name: door.getsockname()[1] for name, door in doors.items()}]), flush=True)
    sys.stdin.read()
"""


def a_spare(script: str = WAITING, **settings: float) -> Spare:
    return Spare([sys.executable, "-c", script], **{"pause_s": 0.01, **settings})


@asynccontextmanager
async def kept(spare: Spare) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spare.run)
        yield
        nursery.cancel_scope.cancel()


async def loaded(spare: Spare, *, but: int = 0) -> int:
    """The spare's process id, once it waits and is another."""
    with trio.fail_after(30):
        while spare.pid in (0, but):
            await trio.sleep(0.01)
    return spare.pid


async def first_line(process: trio.Process) -> bytes:
    assert process.stdout is not None
    line = b""
    with trio.fail_after(30):
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some(4096)
    return line


async def ended(process: trio.Process) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        await pipe.aclose()
    with trio.fail_after(30):
        await process.wait()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_spare_is_what_it_was_ordered_to_be_and_another_is_loaded_in_its_place() -> None:
    spare = a_spare()
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_server(("127.0.0.1", 0)) as other:
        async with kept(spare):
            pid = await loaded(spare)
            process = await spare.take(Order(["role", "--x"], {"door": door.fileno(), "other": other.fileno()}))
            assert process is not None
            assert process.pid == pid
            ports = f'{{"door": {door.getsockname()[1]}, "other": {other.getsockname()[1]}}}'
            assert await first_line(process) == f'[["role", "--x"], {ports}]\n'.encode()
            await loaded(spare, but=pid)
        # The one that was ordered is its new owner's, and does not end with the spares.
        assert process.poll() is None
        await ended(process)


async def test_where_there_is_no_spare_none_is_given() -> None:
    assert await a_spare().take(Order(["role"])) is None


async def test_a_spare_that_is_killed_is_replaced_and_one_that_is_not_needed_ends() -> None:
    spare, before = a_spare(), os.listdir("/proc/self/fd")
    async with kept(spare):
        pid = await loaded(spare)
        os.kill(pid, signal.SIGKILL)
        another = await loaded(spare, but=pid)
    assert not is_alive(another)
    assert spare.pid == 0
    assert os.listdir("/proc/self/fd") == before


async def test_a_spare_has_its_pipes_and_its_socket_and_keeps_only_what_it_was_ordered() -> None:
    def open_in(pid: int) -> list[str]:
        return [os.readlink(f"/proc/{pid}/fd/{number}").partition(":")[0] for number in os.listdir(f"/proc/{pid}/fd")]

    spare = a_spare()
    with socket.create_server(("127.0.0.1", 0)) as door:
        async with kept(spare):
            pid = await loaded(spare)
            assert sorted(name for name in open_in(pid) if name in ("pipe", "socket")) == ["pipe", "pipe", "socket"]
            process = await spare.take(Order(["role"], {"door": door.fileno()}))
            assert process is not None
            await first_line(process)
            assert open_in(pid).count("socket") == 1
            sockets = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
            assert os.readlink(f"/proc/self/fd/{door.fileno()}") in sockets
            await ended(process)


async def test_a_spare_that_dies_at_the_moment_of_its_order_is_not_waited_for() -> None:
    spare = a_spare()
    async with kept(spare):
        pid = await loaded(spare)
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(5):
            assert await spare.take(Order(["role"])) is None
        assert not is_alive(pid)


async def test_a_spare_that_does_not_answer_is_killed_and_not_waited_for() -> None:
    spare = a_spare(answer_s=0.1)
    async with kept(spare):
        pid = await loaded(spare)
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(5):
            assert await spare.take(Order(["role"])) is None
        assert not is_alive(pid)


async def test_a_spare_that_is_loading_takes_its_order_when_it_has_loaded(tmp_path: Path) -> None:
    script = f"import os, time; open('{tmp_path}/begun', 'w')\n"
    script += f"while not os.path.exists('{tmp_path}/go'): time.sleep(0.01)\n{WAITING}"
    spare = a_spare(script, answer_s=0)
    async with kept(spare), trio.open_nursery() as nursery:
        with trio.fail_after(30):
            while not (tmp_path / "begun").exists():
                await trio.sleep(0.01)
        nursery.start_soon(trio.Path(tmp_path / "go").touch)
        process = await spare.take(Order(["role"]))
        assert process is not None
        assert await first_line(process) == b'[["role"], {}]\n'
        await ended(process)


async def test_one_whose_taker_is_cancelled_is_not_left_behind() -> None:
    spare = a_spare()
    async with kept(spare):
        pid = await loaded(spare)
        os.kill(pid, signal.SIGSTOP)
        with trio.move_on_after(0.1) as scope:
            await spare.take(Order(["role"]))
        assert scope.cancelled_caught
        assert not is_alive(pid)


async def test_ctrl_c_is_not_for_a_spare_and_is_for_what_it_becomes(capfd: pytest.CaptureFixture[str]) -> None:
    spare = a_spare(f"import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n{WAITING}")
    async with kept(spare):
        pid = await loaded(spare)
        os.kill(pid, signal.SIGINT)
        process = await spare.take(Order(["role"]))
        assert process is not None
        assert process.pid == pid
        assert await first_line(process)
        assert capfd.readouterr().err == ""
        process.send_signal(signal.SIGINT)
        await ended(process)
        assert "KeyboardInterrupt" in capfd.readouterr().err


def starts_noted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a spare would have been started, if it could be."""
    noted: list[float] = []

    async def start(command: object) -> None:
        noted.append(trio.current_time())
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(module, "_start", start)
    return noted


async def test_no_spare_is_loaded_while_a_process_is_started_or_right_after(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    noted, spare = starts_noted(monkeypatch), Spare(["x"])
    async with kept(spare):
        for _ in range(20):
            with spare.aside():
                await trio.sleep(PAUSE_S * 0.7)
            await trio.sleep(PAUSE_S * 0.7)
        over = trio.current_time()
        assert not noted
        await trio.sleep(2 * PAUSE_S)
        assert noted
        assert noted[0] >= over - PAUSE_S * 0.7 + PAUSE_S


async def test_spares_that_do_not_last_are_tried_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    noted, spare = starts_noted(monkeypatch), Spare(["x"])
    began = trio.current_time()
    async with kept(spare):
        await trio.sleep(PAUSE_MOST_S * 20)
    pauses = [after - before for before, after in zip([began, *noted], noted, strict=False)]
    assert pauses[:7] == pytest.approx([min(PAUSE_S * 2**n, PAUSE_MOST_S) for n in range(7)])
    assert pauses[7:] == pytest.approx([PAUSE_MOST_S] * (len(pauses) - 7))


@pytest.fixture
def sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_nobody_left_to_give_an_order_is_told_by_the_end_of_the_socket() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert not is_ordered(theirs)
    ours.close()
    assert is_ordered(theirs)
    assert await_order(theirs) is None
    assert theirs.fileno() == -1


@pytest.mark.usefixtures("sigint")
@given(
    arguments=st.lists(st.text(st.characters(codec="utf-8")), max_size=8),
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), unique=True, max_size=module.MAX_SOCKETS),
)
def test_an_order_is_read_as_it_was_given(arguments: list[str], names: list[str]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def give_and_take() -> Order | None:
        giving = trio.socket.from_stdlib_socket(ours)
        read: Order | None = None
        async with trio.open_nursery() as nursery:

            async def give() -> None:
                assert await module._obeys(giving, order)
                giving.close()

            nursery.start_soon(give)
            while not is_ordered(theirs):
                await trio.lowlevel.checkpoint()
            read = await_order(theirs)
        return read

    with socket.socket() as passed:
        order = Order(arguments, dict.fromkeys(names, passed.fileno()))
        found = trio.run(give_and_take)
        assert found is not None
        assert found.arguments == arguments
        assert list(found.sockets) == names
        same = os.fstat(passed.fileno()).st_ino
        for number in found.sockets.values():
            assert os.fstat(number).st_ino == same
            assert not os.get_inheritable(number)
            os.close(number)
