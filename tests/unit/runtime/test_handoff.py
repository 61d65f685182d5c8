"""A socket given to another process is one of the two's at any moment, and no descriptor is left behind."""

import array
import json
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from sapflow.errors import ConfigurationError, LinkError
from sapflow.runtime.giving import MAX_WAITING, SLOW, Giving, _Channel
from sapflow.runtime.handoff import REFUSED, TAKEN, Handed, announced, host_id, path_here, short_path
from sapflow.runtime.taking import Taking, check_tcp, listen_handoff
from tests.peers import needs_root

HANDED = Handed("link", "192.0.2.7:4711", "b1")
SEQPACKET = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(holds: object) -> None:
    assert callable(holds)
    with trio.fail_after(20):
        while not holds():
            await trio.sleep(0.005)


@contextmanager
def a_connection() -> Iterator[tuple[socket.socket, trio.SocketStream]]:
    """A client's socket, and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client:
        client.settimeout(20)
        accepted.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
        yield client, stream
        stream.socket.close()


@define
class Echo:
    """Says who is there, then what it heard."""

    peers: list[str] = field(factory=list)

    async def serve(self, stream: trio.SocketStream, peer: str) -> None:
        self.peers.append(peer)
        async for data in stream:
            await stream.send_all(data)


@define
class Pair:
    giving: Giving
    taking: Taking
    echo: Echo


@asynccontextmanager
async def a_pair(directory: Path, *, slots: int = 1000, timeout_s: float = 5.0) -> AsyncIterator[Pair]:
    echo = Echo()
    taking = Taking({"link": echo.serve}, trio.CapacityLimiter(slots))
    listener, path = listen_handoff(directory, "c1")
    giving = Giving(timeout_s)
    giving.takers({"c1": announced(path)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taking.run, listener, path)
        nursery.start_soon(giving.run)
        await until(lambda: taking.counts.givers == 1)
        yield Pair(giving, taking, echo)
        nursery.cancel_scope.cancel()


async def echoes(client: socket.socket, said: bytes) -> bool:
    client.sendall(said)
    return await trio.to_thread.run_sync(client.recv, 100) == said


async def test_a_socket_that_is_given_is_served_with_what_was_peeked_and_outlives_its_giver(tmp_path: Path) -> None:
    async with a_pair(tmp_path / "handoff") as pair:
        with a_connection() as (client, stream):
            client.sendall(b"first")
            await trio.lowlevel.wait_readable(stream.socket)
            assert await stream.socket.recv(100, socket.MSG_PEEK) == b"first"
            assert await pair.giving.give("c1", stream, HANDED)
            stream.socket.close()
            assert await trio.to_thread.run_sync(client.recv, 100) == b"first"
            assert await echoes(client, b"more")
            assert pair.echo.peers == ["192.0.2.7:4711"]
            assert (pair.giving.counts.given, pair.taking.counts.taken) == (1, 1)


async def test_hundreds_given_at_once_are_all_served_and_leave_no_descriptor(tmp_path: Path) -> None:
    before = descriptors()
    given = []

    async def one(pair: Pair) -> None:
        with a_connection() as (client, stream):
            given.append(await pair.giving.give("c1", stream, HANDED))
            stream.socket.close()
            assert await echoes(client, b"here")

    async with a_pair(tmp_path / "handoff") as pair:
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(one, pair)
        assert given == [True] * 300
        await until(lambda: pair.taking.slots.borrowed_tokens == 0)
    assert descriptors() == before


async def test_what_a_full_taker_refuses_is_still_its_givers(tmp_path: Path) -> None:
    async with a_pair(tmp_path / "handoff", slots=1) as pair:
        with a_connection() as (first, stream), a_connection() as (second, other):
            assert await pair.giving.give("c1", stream, HANDED)
            before = descriptors()
            assert not await pair.giving.give("c1", other, HANDED)
            assert (pair.giving.counts.refused, pair.taking.counts.no_room) == (1, 1)
            second.sendall(b"x")
            assert await other.receive_some(10) == b"x"
            assert descriptors() == before
            stream.socket.close()
            first.close()
            await until(lambda: pair.taking.slots.borrowed_tokens == 0)
            assert await pair.giving.give("c1", other, HANDED)


async def test_a_taker_that_does_not_answer_can_no_longer_take(tmp_path: Path) -> None:
    """It is stopped, and goes on when its giver has long begun to serve the socket itself."""
    with socket.socket(socket.AF_UNIX, SEQPACKET) as listener:
        listener.bind(str(tmp_path / "c1.sock"))
        listener.listen()
        giving = Giving(0.1)
        giving.takers({"c1": announced(tmp_path / "c1.sock")})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(giving.run)
            await trio.lowlevel.wait_readable(listener)
            taker, _ = listener.accept()
            with taker, a_connection() as (_client, stream):
                await until(lambda: giving._channels)
                assert not await giving.give("c1", stream, HANDED)
                assert giving.counts.unanswered == 1
                data, passed, _, _ = taker.recvmsg(2048, socket.CMSG_SPACE(4))
                os.close(array.array("i", passed[0][2])[0])
                assert Handed.decode(data) == HANDED
                with pytest.raises(BrokenPipeError):
                    taker.send(TAKEN)
            nursery.cancel_scope.cancel()


async def test_an_answer_that_was_sent_counts_even_if_it_was_not_read_in_time() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    with ours, theirs, a_connection() as (_client, stream):
        channel = _Channel(ours)
        answers: list[bytes] = []
        for _ in range(2):
            channel.turns.acquire_nowait()
            assert channel.offer(stream.socket.fileno(), HANDED, trio.current_time(), answers.append)
        # Nobody has read answers: their deadline is over with this one in the queue.
        theirs.send(TAKEN)
        with trio.fail_after(10):
            await channel.read()
    assert answers == [TAKEN, b""]
    assert channel.ended


async def test_the_first_of_many_that_is_not_answered_ends_all_in_time(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    with ours, theirs, a_connection() as (_client, stream):
        channel = _Channel(ours)
        answers: list[tuple[float, bytes]] = []
        began = trio.current_time()

        def answered(answer: bytes) -> None:
            answers.append((trio.current_time() - began, answer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.read)
            await trio.testing.wait_all_tasks_blocked()
            for after_s in (1.0, 2.0):
                channel.turns.acquire_nowait()
                until_s = trio.current_time() + after_s
                assert channel.offer(stream.socket.fileno(), HANDED, until_s, answered)
            await trio.sleep(0.5)
            assert answers == []
    assert answers == [(1.0, b""), (1.0, b"")]


async def test_who_is_cancelled_in_the_midst_of_it_knows_whose_the_socket_is(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, SEQPACKET) as listener, a_connection() as (_client, stream):
        listener.bind(str(tmp_path / "c1.sock"))
        listener.listen()
        giving, given = Giving(5.0), list[bool]()
        giving.takers({"c1": announced(tmp_path / "c1.sock")})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(giving.run)
            await trio.lowlevel.wait_readable(listener)
            taker, _ = listener.accept()
            await until(lambda: giving._channels)

            async def give() -> None:
                given.append(await giving.give("c1", stream, HANDED))

            with taker:
                async with trio.open_nursery() as inner:
                    inner.start_soon(give)
                    await trio.testing.wait_all_tasks_blocked()
                    inner.cancel_scope.cancel()
                    taker.send(TAKEN)
                assert given == [True]
                # Who is cancelled before it had its turn has sent nothing.
                taker.setblocking(False)
                taker.recv(2048)
                for _ in range(MAX_WAITING):
                    giving._channels["c1"].turns.acquire_nowait()
                with trio.move_on_after(0.05) as waited:
                    await giving.give("c1", stream, HANDED)
                assert waited.cancelled_caught
                with pytest.raises(BlockingIOError):
                    taker.recv(2048)
            nursery.cancel_scope.cancel()


async def test_an_offer_waits_a_moment_for_its_turn_and_no_longer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, SEQPACKET) as listener, a_connection() as (_client, stream):
        listener.bind(str(tmp_path / "c1.sock"))
        listener.listen()
        giving, heard = Giving(20.0), list[bool]()
        giving.takers({"c1": announced(tmp_path / "c1.sock")})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(giving.run)
            await until(lambda: giving._channels)
            for _ in range(MAX_WAITING):
                assert await giving.offer("c1", stream.socket.fileno(), HANDED, heard.append)
            with trio.fail_after(10):
                assert not await giving.offer("c1", stream.socket.fileno(), HANDED, heard.append)
            assert not heard
            assert giving.counts.unanswered == 1
            taker, _ = listener.accept()
            with taker:
                taker.send(TAKEN)
                await until(lambda: heard == [True])
                assert await giving.offer("c1", stream.socket.fileno(), HANDED, heard.append)
            await until(lambda: heard == [True] + [False] * MAX_WAITING)
            nursery.cancel_scope.cancel()


async def test_a_taker_that_is_killed_with_sockets_in_its_queue_has_none_of_them(tmp_path: Path) -> None:
    program = (
        "import socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.bind(sys.argv[1]); s.listen()\n"
        "c, _ = s.accept(); print('accepted', flush=True); time.sleep(60)"
    )
    path = tmp_path / "c1.sock"
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE
    )
    try:
        await until(path.is_socket)
        giving = Giving(20.0)
        giving.takers({"c1": announced(path)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(giving.run)
            assert process.stdout is not None
            assert await trio.to_thread.run_sync(process.stdout.readline) == b"accepted\n"
            with a_connection() as (client, stream), trio.fail_after(10):
                given: list[bool] = []

                async def give() -> None:
                    given.append(await giving.give("c1", stream, HANDED))

                async with trio.open_nursery() as inner:
                    inner.start_soon(give)
                    await trio.testing.wait_all_tasks_blocked()
                    process.kill()
                assert given == [False]
                client.sendall(b"still here")
                assert await stream.receive_some(100) == b"still here"
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_another_users_process_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_pair(tmp_path / "handoff") as pair:
        monkeypatch.setattr("sapflow.runtime.taking.is_mine", lambda _sock: False)
        (path,) = (tmp_path / "handoff").iterdir()
        with socket.socket(socket.AF_UNIX, SEQPACKET) as stranger:
            stranger.connect(str(path))
            await until(lambda: pair.taking.counts.strangers == 1)
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(stranger)
            assert stranger.recv(10) == b""
        assert pair.taking.counts.taken == 0


@needs_root("only root can be somebody else")
async def test_the_kernel_says_who_another_user_is_even_if_the_directory_is_open(tmp_path: Path) -> None:
    program = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "s.connect(sys.argv[2]); print(s.recv(10))"
    )
    async with a_pair(tmp_path / "handoff") as pair:
        (path,) = (tmp_path / "handoff").iterdir()
        arguments = [sys.executable, "-c", program, str(path.parent), path.name]
        run = partial(subprocess.run, arguments, capture_output=True, timeout=20, check=False)
        refused = await trio.to_thread.run_sync(run)
        assert b"PermissionError" in refused.stderr
        path.chmod(0o666)
        path.parent.chmod(0o777)
        entered = await trio.to_thread.run_sync(run)
        assert entered.stdout == b"b''\n"
        assert (pair.taking.counts.strangers, pair.taking.counts.givers) == (1, 1)


async def test_a_giver_does_not_trust_another_users_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapflow.runtime.giving.is_mine", lambda _sock: False)
    with socket.socket(socket.AF_UNIX, SEQPACKET) as listener, a_connection() as (_client, stream):
        listener.bind(str(tmp_path / "c1.sock"))
        listener.listen()
        giving = Giving(0.1)
        giving.takers({"c1": announced(tmp_path / "c1.sock")})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(giving.run)
            await trio.lowlevel.wait_readable(listener)
            taker, _ = listener.accept()
            with taker:
                taker.setblocking(False)
                await trio.lowlevel.wait_readable(taker)
                assert taker.recv(10) == b""
                assert not await giving.give("c1", stream, HANDED)
            nursery.cancel_scope.cancel()


def hostile_messages() -> list[tuple[str, bytes, list[int]]]:
    read_end, write_end = os.pipe()
    unix, other = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ends = [read_end, write_end, unix.detach(), other.detach(), udp.detach()]
    said = HANDED.encode()
    return [
        ("no JSON", b"\xff\xfe", ends[:1]),
        ("deep JSON", b"[" * 2000, ends[:1]),
        ("no object", b"[1,2]", ends[:1]),
        ("no such door", json.dumps({"door": "x", "peer": "p", "by": "b"}).encode(), ends[:1]),
        ("too long", said + b" " * 4000, ends[:1]),
        ("a pipe", said, ends[:1]),
        ("a Unix socket", said, ends[2:3]),
        ("UDP", said, ends[4:]),
        ("many", said, ends),
    ]


async def test_who_gives_what_is_no_connection_is_cut_off_and_leaves_no_descriptor(tmp_path: Path) -> None:
    messages = hostile_messages()
    async with a_pair(tmp_path / "handoff") as pair:
        (path,) = (tmp_path / "handoff").iterdir()
        before = descriptors()
        for count, (what, said, passed) in enumerate(messages, 1):
            with socket.socket(socket.AF_UNIX, SEQPACKET) as giver:
                giver.connect(str(path))
                giver.sendmsg([said], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))])
                with trio.fail_after(10):
                    await trio.lowlevel.wait_readable(giver)
                assert giver.recv(10) == b"", what
            assert pair.taking.counts.malformed == count, what
        await until(lambda: pair.taking.counts.givers == 1)
        assert descriptors() == before
        assert pair.taking.slots.borrowed_tokens == 0
    for descriptor in messages[-1][2]:
        os.close(descriptor)


async def test_a_taker_without_a_free_descriptor_says_so_and_goes_on(tmp_path: Path) -> None:
    async with a_pair(tmp_path / "handoff") as pair:
        with a_connection() as (client, stream):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.open("/dev/null", os.O_RDONLY)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                assert not await pair.giving.give("c1", stream, HANDED)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert pair.giving.counts.refused == 1
            assert await pair.giving.give("c1", stream, HANDED)
            stream.socket.close()
            assert await echoes(client, b"served")


async def test_a_giver_that_reads_no_answers_is_cut_off_before_one_could_be_taken_for_another(tmp_path: Path) -> None:
    async with a_pair(tmp_path / "handoff") as pair:
        (path,) = (tmp_path / "handoff").iterdir()
        with socket.socket(socket.AF_UNIX, SEQPACKET) as giver, a_connection() as (_client, stream):
            giver.connect(str(path))
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [stream.socket.fileno()]))]
            said = Handed("exporter", "192.0.2.7:4711", "b1").encode()
            with trio.fail_after(20):
                while not pair.taking.counts.malformed:
                    try:
                        giver.sendmsg([said], passed)
                    except OSError:
                        await trio.sleep(0.005)
                    await trio.lowlevel.checkpoint()
        assert pair.taking.counts.malformed == 1


def test_a_taker_on_another_host_or_out_of_sight_is_not_used(tmp_path: Path) -> None:
    listener, path = listen_handoff(tmp_path / "handoff", "c1")
    with listener:
        assert path_here(announced(path)) == path
        assert path_here(f"{host_id()[::-1]}:{path}") is None
        assert path_here(announced(tmp_path / "nobody.sock")) is None
        assert path_here(f"{host_id()}:handoff/c1.sock") is None
        assert path_here("") is None


def test_a_path_of_any_length_can_be_listened_on(tmp_path: Path) -> None:
    listener, path = listen_handoff(tmp_path / ("d" * 100) / ("e" * 100), "c1")
    with listener, socket.socket(socket.AF_UNIX, SEQPACKET) as giver, short_path(path) as short:
        giver.connect(short)
        assert select.select([listener], [], [], 5)[0]
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_dead_takers_left_goes_and_a_predecessor_that_lives_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, SEQPACKET) as dead, socket.socket(socket.AF_UNIX, SEQPACKET) as living:
        dead.bind(str(tmp_path / "c1.1.sock"))
        living.bind(str(tmp_path / "c1.2.sock"))
        living.listen()
        listener, path = listen_handoff(tmp_path, "c1")
        listener.close()
    assert {found.name for found in tmp_path.iterdir()} == {"c1.2.sock", path.name}


def test_a_directory_that_cannot_be_used_is_told_with_what_it_means(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"balancers on this host relay to c1 instead.*collector\.handoff"):
        listen_handoff(tmp_path / "file" / "handoff", "c1")


def test_only_tcp_connections_are_taken() -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        check_tcp(tcp.fileno())
        with pytest.raises(LinkError):
            check_tcp(udp.fileno())
        assert udp.fileno() > 0


def test_the_answers_differ() -> None:
    assert TAKEN != REFUSED


async def test_a_taker_that_is_not_there_is_told_seldom_and_with_what_is_wrong(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    giving = Giving(1.0)
    with trio.move_on_after(100):
        await giving._keep("c1", str(tmp_path / "nowhere.sock"))
    told = [line for line in capsys.readouterr().out.splitlines() if "hand-off not possible now" in line]
    assert 5 <= len(told) <= 8, told
    assert all("No such file or directory" in line for line in told)


async def test_a_taker_that_does_not_answer_in_time_is_not_said_to_have_closed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    answers: list[bytes] = []
    with theirs, ours, a_connection() as (_, stream):
        channel = _Channel(ours)
        await channel.turns.acquire()
        assert channel.offer(stream.socket.fileno(), HANDED, trio.current_time() + 0.05, answers.append)
        with trio.fail_after(10):
            await channel.read()
        assert (channel.ended, channel.why, answers) == (True, SLOW, [b""])
