"""A process that dies while it answers is one that does not answer."""

import socket
import threading

from sapflow.cli.fleet_file import read_status


def answering(listener: socket.socket, data: bytes) -> threading.Thread:
    """Give these bytes to whoever comes first, and close."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_an_answer_that_is_cut_off_or_none_is_told_as_an_error() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    for data in (chunked, chunked + b"5\r\n{", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", b"nonsense\r\n", b""):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = answering(listener, data)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/status"
            found = read_status({"control": {"collector-1": url}})
            thread.join(10)
        assert set(found["collector-1"]) == {"error"}
