"""What goes wrong on a user's machine: one line that says what and where, and an exit code of the contract."""

import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from sapflow.cli import cli, send
from sapflow.errors import Unreachable
from sapflow.flows.reference import reference_work
from tests.unit.cli.test_tail import SAPFLOW, sapflow

CUT = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER for a close that is a reset."""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("a-token")
    path = tmp_path / "work.ipfix"
    path.write_bytes(reference_work(3000))
    return path


@contextmanager
def a_port(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """A port that gives each connection to `answer`, one after the other, and closes it then."""

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if done.is_set():
                    return
                answer(connection)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            done.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join(10)


def cut(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CUT)


@pytest.mark.parametrize("format_", ["jsonl", "csv", "ipfix", "arrow", "parquet"])
def test_a_full_disk_is_told_by_the_name_of_what_cannot_be_written(format_: str, work: Path) -> None:
    said = sapflow("decode", work, "--format", format_, "-o", "/dev/full", code=1).stderr
    assert "/dev/full cannot be written: No space left on device" in said


def test_a_full_disk_behind_standard_output_is_told_too(work: Path) -> None:
    with open("/dev/full", "wb") as full:
        for more in ((), ("--stats",), ("--templates",)):
            found = subprocess.run(
                [*SAPFLOW, "decode", work, *more], timeout=60, stdout=full, stderr=subprocess.PIPE, text=True
            )
            assert (found.returncode, found.stderr.count("\n")) == (1, 1)
            assert "standard output cannot be written: No space left on device" in found.stderr


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path} cannot be read: Is a directory" in sapflow("decode", tmp_path, code=1).stderr
    # Opened without a fault; the first read has one.
    assert "/proc/self/mem cannot be read: Input/output error" in sapflow("decode", "/proc/self/mem", code=1).stderr


def test_decoding_ends_without_a_word_when_nobody_reads_on(work: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb") as nobody:
        found = subprocess.run([*SAPFLOW, "decode", work], timeout=60, stdout=nobody, stderr=subprocess.PIPE)
    assert (found.returncode, found.stderr) == (0, b"")


def test_a_plain_door_that_cuts_the_connection_is_said_to(work: Path) -> None:
    with a_port(cut) as port:
        said = sapflow("send", work, "--to", f"ipfix+tcp://127.0.0.1:{port}", code=1).stderr
    assert f"127.0.0.1:{port}: it c" in said
    assert "the door's log says why" in said


def test_a_name_that_nobody_has_is_said_with_the_door(work: Path) -> None:
    said = sapflow("send", work, "--to", "udp://nobody.invalid:4739", code=1).stderr
    assert "udp://nobody.invalid:4739 cannot be reached" in said


@pytest.mark.parametrize("scheme", ["links", "wss"])
def test_a_certificate_that_is_not_believed_is_said_at_once(scheme: str, work: Path) -> None:
    def shake_hands(connection: socket.socket) -> None:
        connection.settimeout(10)
        with pytest.raises((ssl.SSLError, OSError)):
            tls.wrap_socket(connection, server_side=True)

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with a_port(shake_hands) as port:
        url = f"{scheme}://127.0.0.1:{port}"
        said = sapflow("send", work, "--to", url, "--token-file", work.parent / "token", code=1).stderr
    assert "certificate verify failed" in said
    assert "--ca FILE" in said
    assert "no link within" not in said


def test_a_door_without_tls_is_said_at_once_to_be_one(work: Path) -> None:
    with a_port(lambda connection: connection.sendall(b"SAPL, not TLS\r\n" + connection.recv(1 << 16))) as port:
        url = f"links://127.0.0.1:{port}"
        said = sapflow("send", work, "--to", url, "--token-file", work.parent / "token", code=1).stderr
    assert "is it a door with TLS?" in said
    assert "no link within" not in said


@pytest.mark.parametrize("scheme", ["link", "links", "ws"])
def test_a_door_that_says_nothing_is_given_up(scheme: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "WELCOME_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        words = ["send", str(work), "--to", url, "--token-file", str(work.parent / "token")]
        with pytest.raises(BaseExceptionGroup) as failed:
            CliRunner().invoke(cli, words, catch_exceptions=False)
    unreachable, others = failed.value.split(Unreachable)
    assert others is None
    assert f"{url}: no link within 0.5 s" in str(unreachable.exceptions if unreachable else "")


def test_ctrl_c_in_work_that_is_not_done_is_a_failure(work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"link://127.0.0.1:{silent.getsockname()[1]}"
        words = [*SAPFLOW, "send", str(work), "--to", url, "--token-file", str(work.parent / "token")]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (1, "sapflow: stopped before it was done\n")


@pytest.mark.parametrize("at", ["²", "-5", "soon", "1" * 5000, "2026-13-01"])
def test_what_is_no_position_is_wrong_use_and_leaves_files_alone(at: str, tmp_path: Path) -> None:
    kept, token = tmp_path / "kept", tmp_path / "token"
    kept.write_text("of before")
    token.write_text("a-token")
    words = ("tail", "acme", "--to", "link://127.0.0.1:1", "--token-file", token, "-o", kept, f"--at={at}")
    assert "write earliest, latest, a position, or a time" in sapflow(*words, code=2).stderr
    assert kept.read_text() == "of before"


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"doors": {}}'])
def test_a_fleet_file_that_is_none_is_said_to_be(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "fleet.json").write_bytes(content)
    assert f"no fleet found in {tmp_path}" in sapflow("status", "--data", tmp_path, code=1).stderr
