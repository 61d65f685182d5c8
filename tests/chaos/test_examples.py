"""The programs in examples/: killed in the midst, and Phloem too, they lose and double nothing."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from tools.fleet import Fleet, running

from sapflow.client import list_groups, subscribe
from sapflow.errors import SapflowError
from sapflow.flows.reference import reference_work

EXAMPLES = Path(__file__).parents[2] / "examples"
ORG = "default"
PART = 400
"""Messages that are sent at a time, of 24 records each."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running(tmp_path_factory.mktemp("fleet"), collectors=1) as found:
        yield found


def url(fleet: Fleet) -> str:
    return f"link://{fleet.doors['consume']}"


async def push(fleet: Fleet) -> None:
    host, port = fleet.doors["ipfix_tcp"].split(":")
    async with await trio.open_tcp_stream(host, int(port)) as exporter:
        await exporter.send_all(reference_work(PART))
        await exporter.send_eof()
        await exporter.receive_some(1)


async def in_the_log(fleet: Fleet) -> Counter[int]:
    """Records by position."""
    async with subscribe(url(fleet), ORG, fleet.fleet_token(), at="earliest", follow=False) as batches:
        assert not batches.repeats
        return Counter({batch.position: batch.records async for batch in batches})


async def position(fleet: Fleet, group: str) -> tuple[int, int]:
    """Where the group is, and the log's end; -1 while there is no such group, or no Phloem."""
    try:
        (found,) = await list_groups(url(fleet), ORG, fleet.fleet_token(), group=group)
    except (SapflowError, ValueError):
        return -1, 0
    return found.position, found.last


async def moved(fleet: Fleet, group: str, since: int) -> int:
    """Wait until the group has come further: to where."""
    while (found := (await position(fleet, group))[0]) <= since:
        await trio.sleep(0.02)
    return found


@contextmanager
def an_example(fleet: Fleet, name: str, sink: str) -> Iterator[subprocess.Popen[bytes]]:
    """Running, and killed -9 at the end."""
    command = [sys.executable, str(EXAMPLES / name), url(fleet), ORG, str(fleet.data / "fleet.token"), sink]
    process = subprocess.Popen(command)
    try:
        yield process
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


async def killed_in_the_midst(fleet: Fleet, name: str, group: str, sink: str) -> Counter[int]:
    """The example killed twice and Phloem once, while records come: what the log holds then."""
    with trio.fail_after(80):
        before = sum((await in_the_log(fleet)).values())
        await push(fleet)
        with an_example(fleet, name, sink):
            at = await moved(fleet, group, 0)
        await push(fleet)
        with an_example(fleet, name, sink):
            at = await moved(fleet, group, at)
            await push(fleet)
            await trio.to_thread.run_sync(fleet.kill, "phloem-1")
            await push(fleet)
            await moved(fleet, group, at)
        with an_example(fleet, name, sink):
            found = await in_the_log(fleet)
            while sum(found.values()) < before + 4 * PART * 24:
                await trio.sleep(0.1)
                found = await in_the_log(fleet)
            while (await position(fleet, group))[0] < max(found):
                await trio.sleep(0.02)
        return found


def run(fleet: Fleet, name: str, group: str, sink: object) -> Counter[int]:
    return trio.run(killed_in_the_midst, fleet, name, group, str(sink))


def test_to_duckdb(fleet: Fleet, tmp_path: Path) -> None:
    import duckdb

    expected = run(fleet, "to_duckdb.py", "duckdb", tmp_path / "flows.duckdb")
    with duckdb.connect(str(tmp_path / "flows.duckdb")) as database:
        found = database.execute("select _position, count(*) from flows group by 1").fetchall()
        assert Counter(dict(found)) == expected
        assert database.execute("select count(*) from flows where bytes is null").fetchall() == [(0,)]


def test_to_parquet(fleet: Fleet, tmp_path: Path) -> None:
    import pyarrow.parquet

    expected = run(fleet, "to_parquet.py", "parquet", tmp_path / "flows")
    found: Counter[int] = Counter()
    for path in (tmp_path / "flows").glob("*.parquet"):
        found.update(pyarrow.parquet.read_table(path)["_position"].to_pylist())
    assert found == expected


@contextmanager
def a_service(taken: Callable[[str, bytes], None]) -> Iterator[str]:
    """One that refuses every fifth request, after it has taken it."""
    count = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal count
            count += 1
            taken(self.headers["Idempotency-Key"], self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(503 if count % 5 == 0 else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/flows"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_to_webhook(fleet: Fleet) -> None:
    bodies: dict[str, bytes] = {}
    requests: list[str] = []

    def taken(key: str, body: bytes) -> None:
        requests.append(key)
        assert bodies.setdefault(key, body) == body

    with a_service(taken) as hook:
        expected = run(fleet, "to_webhook.py", "webhook", hook)
    found = Counter(json.loads(line)["_position"] for body in bodies.values() for line in body.splitlines())
    assert found == expected
    assert len(requests) > len(bodies)
    command = [sys.executable, "-m", "sapflow", "status", "--data", str(fleet.data)]
    shown = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    (line,) = (line for line in shown.splitlines() if "webhook" in line)
    assert line.split()[:2] == [ORG, "webhook"]
