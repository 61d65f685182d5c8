"""What systemd is told: ready, and alive only while the spool's thread answers."""

import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from meter.systemd import notify, watchdog


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return sock


def test_ready_is_told_to_the_socket_that_systemd_names(told: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with told:
        assert notify("READY=1")
        assert told.recv(100) == b"READY=1"
    assert not notify("READY=1"), "nobody listens any more"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")


def test_a_socket_without_a_name_in_the_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{__name__}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{__name__}")
        assert notify("READY=1")
        assert sock.recv(100) == b"READY=1"


async def test_the_watchdog_is_silent_while_the_spool_does_not_answer(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    answers = True

    def answering(within_s: float) -> bool:
        assert within_s == 5
        return answers

    def count() -> int:
        number = 0
        while True:
            try:
                assert told.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return number
            number += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog, answering)
        await trio.sleep(21)
        assert count() == 5
        answers = False
        await trio.sleep(20)
        assert count() == 0
        nursery.cancel_scope.cancel()
    told.close()


async def test_without_a_watchdog_nothing_is_told(told: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await watchdog(lambda _: True)
    with pytest.raises(BlockingIOError):
        told.recv(100)
    told.close()
