"""Real processes, killed -9 under load; every record counted afterwards."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from tools.chaos import FAULTS, Plan, run
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load

from sapflow.client import subscribe
from sapflow.errors import Refused
from sapflow.flows.reference import reference_work


def sapflow(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sapflow", *arguments]
    return subprocess.run(command, check=check, timeout=60, capture_output=True, text=True)


@pytest.mark.timeout(200)
def test_random_kills_lose_nothing_acknowledged_and_store_nothing_twice(tmp_path: Path) -> None:
    with running(tmp_path, collectors=2) as fleet:
        account = trio.run(partial(run, fleet, Plan(every_s=4, seed=1), seconds=60, meters=30, orgs=3))
    assert len(account.faults) >= 8
    assert account.acknowledged_records == account.sent_records > 10_000
    assert account.stored_records == account.sent_records
    assert account.clean, account


@pytest.mark.timeout(200)
def test_faults_of_every_kind_lose_nothing_acknowledged_and_store_nothing_twice(tmp_path: Path) -> None:
    plan = Plan(kinds=FAULTS, every_s=3, stop_s=2, seed=7)
    with running(tmp_path, collectors=2) as fleet:
        account = trio.run(partial(run, fleet, plan, seconds=45, meters=20, orgs=2))
    assert len({fault.split()[0] for fault in account.faults}) >= 4
    assert account.acknowledged_records == account.sent_records == account.stored_records > 5_000
    assert account.clean, account


def test_an_exporters_records_survive_the_death_of_its_collector(tmp_path: Path) -> None:
    """The exporter stays connected; its stream is re-homed."""
    work = reference_work(600)
    with running(tmp_path, collectors=2) as fleet:
        host, port = fleet.doors["ipfix_tcp"].split(":")

        async def scenario() -> int:
            async with await trio.open_tcp_stream(host, int(port)) as exporter:
                third = len(work) // 3
                await exporter.send_all(work[:third])
                await trio.sleep(2.5)
                for name in ("collector-1", "collector-2"):
                    streams = fleet.status()[name]["orgs"].get("default", {}).get("streams", 0)
                    if streams:
                        fleet.kill(name)
                await exporter.send_all(work[third:])
                await exporter.send_eof()
            records = 0
            with trio.fail_after(30):
                url = f"link://{fleet.doors['consume']}"
                async with subscribe(url, "default", fleet.fleet_token(), at="earliest") as batches:
                    async for batch in batches:
                        records += batch.records
                        if records >= 600 * 24:
                            break
                assert not batches.repeats
            return records

        assert trio.run(scenario) == 600 * 24


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running(tmp_path_factory.mktemp("fleet")) as running_fleet:
        yield running_fleet


def test_what_is_sent_over_a_link_is_durable_when_send_ends(fleet: Fleet, tmp_path: Path) -> None:
    file, token = tmp_path / "work.ipfix", tmp_path / "token"
    file.write_bytes(reference_work(300))
    token.write_text(fleet.token("acme"))
    url = f"link://{fleet.doors['link']}"
    with_retry = partial(sapflow, "send", str(file), "--to", url, "--org", "acme", "--token-file", str(token), "--json")
    trio.run(trio.sleep, 1.5)
    assert json.loads(with_retry().stdout)["records"] == 7200
    common = ["acme", "--at", "earliest", "--no-follow", "--data", str(fleet.data), "--token-file", str(token)]
    assert len(sapflow("tail", *common).stdout.splitlines()) == 7200
    assert len(sapflow("tail", *common, "--limit", "10", "--format", "csv").stdout.splitlines()) == 11


def test_w09_a_wrong_token_gets_nothing_in_or_out_and_is_told_why(fleet: Fleet, tmp_path: Path) -> None:
    file, token = tmp_path / "work.ipfix", tmp_path / "token"
    file.write_bytes(reference_work(3))
    token.write_text("sap_wrong")
    for door, arguments in (
        ("link", ["send", str(file), "--org", "default", "--to"]),
        ("consume", ["tail", "default", "--no-follow", "--to"]),
    ):
        found = sapflow(*arguments, f"link://{fleet.doors[door]}", "--token-file", str(token), check=False)
        assert found.returncode == 1
        assert "credential not accepted" in found.stderr
        assert "default" not in found.stderr.split("sapflow:")[-1]


def test_no_org_reads_another(fleet: Fleet) -> None:
    token = fleet.token("globex")

    async def scenario() -> None:
        await trio.sleep(1.5)
        with trio.fail_after(20):
            async with subscribe(f"link://{fleet.doors['consume']}", "default", token, at="earliest") as batches:
                async for _ in batches:
                    raise AssertionError("a batch of another org")

    with pytest.raises(Refused, match="does not name that org"):
        trio.run(scenario)


def test_a_malformed_message_ends_its_exporter_and_no_other(fleet: Fleet) -> None:
    host, port = fleet.doors["ipfix_tcp"].split(":")

    async def scenario() -> None:
        with trio.fail_after(20):
            async with await trio.open_tcp_stream(host, int(port)) as good:
                async with await trio.open_tcp_stream(host, int(port)) as bad:
                    await bad.send_all(b"GET / HTTP/1.1\r\n\r\n")
                    assert not await bad.receive_some(1)
                await good.send_all(reference_work(5))
                await good.send_eof()
                assert not await good.receive_some(1)

    trio.run(scenario)
    intake = fleet.status()["balancer"]["counts"]["intake"]
    assert intake["malformed"] == 1
    assert intake["records"] >= 120


def test_status_says_what_each_process_holds_and_its_ratio(fleet: Fleet) -> None:
    found = sapflow("status", "--data", str(fleet.data))
    assert {line.split()[0] for line in found.stdout.splitlines()[1:]} == {
        "balancer",
        "collector-1",
        "collector-2",
        "phloem-1",
    }


def test_c02_a_subscriber_killed_again_and_again_reads_every_batch_once_by_its_positions(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet:
        ledger, token = Ledger(), fleet.token("acme")
        (tmp_path / "acme.token").write_text(token)
        words = [
            "tail",
            "acme",
            "--to",
            f"link://{fleet.doors['consume']}",
            "--token-file",
            str(tmp_path / "acme.token"),
        ]

        def read_on(after: int) -> list[tuple[int, str]]:
            """What a subscriber that is killed in the midst has written, in whole lines: position and stream."""
            process = subprocess.Popen(
                [sys.executable, "-m", "sapflow", *words, "--at", str(after) if after else "earliest"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(40)]
            process.kill()
            lines += process.stdout.read().splitlines(keepends=True)
            process.wait()
            rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
            return [(row["_position"], row["_stream"]) for row in rows]

        async def scenario() -> list[tuple[int, str]]:
            stop, found = trio.Event(), list[tuple[int, str]]()
            await trio.sleep(1.5)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(
                        load, fleet.doors["link"], {"acme": token}, ledger, stop, meters=5, interval_s=0.1, records=8
                    )
                )
                for _ in range(4):
                    # The last batch may not be whole: it is read again.
                    rows = await trio.to_thread.run_sync(read_on, found[-1][0] if found else 0)
                    last = rows[-1][0]
                    found += [row for row in rows if row[0] < last] or rows
                stop.set()
                nursery.cancel_scope.deadline = trio.current_time() + 30
            return found

        found = trio.run(scenario)
        assert ledger.acknowledged_records == ledger.sent_records
    positions = [position for position, _ in found]
    assert positions == sorted(positions)
    assert {positions.count(position) for position in positions} == {8}
    assert sorted(set(positions)) == list(range(1, positions[-1] + 1))
