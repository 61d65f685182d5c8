"""What goes wrong on a user's machine is said in one clear line that tells what to do."""

import json
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from tools.chaos import Account, count
from tools.fleet import running
from tools.loadgen import Ledger, load

from sapflow.flows.reference import reference_work


def sapflow(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sapflow", *arguments], timeout=60, capture_output=True, text=True, check=False
    )


def said(found: subprocess.CompletedProcess[str], code: int) -> str:
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    return found.stderr


def test_a_port_in_use_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = tmp_path / "f.toml"
        config.write_text(
            f'data = "{tmp_path}/data"\n[fleet]\ncoordinator_address = "127.0.0.1:0"\n'
            f'[balancer]\nlink = "127.0.0.1:0"\nipfix_tcp = "{address}"\n'
        )
        error = said(sapflow("up", "--config", str(config)), 1)
    assert f"cannot listen on {address} for exporters" in error
    assert "choose another port" in error


def test_a_data_directory_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = said(sapflow("up", "--ephemeral", "--data", str(tmp_path / "file" / "data")), 1)
    assert f"{tmp_path}/file/data cannot be used" in error
    assert "choose another with --data" in error


def test_an_unknown_key_and_a_bad_value_are_named_with_their_file(tmp_path: Path) -> None:
    config = tmp_path / "f.toml"
    config.write_text('collectors = "two"\n[phloem]\nbudget_byte = 5\n')
    error = said(sapflow("up", "--config", str(config)), 1)
    assert f"{config}: collectors: expected an integer, got 'two'" in error
    assert "did you mean 'budget_bytes'?" in error


def test_an_unknown_org_is_said_to_be_unknown(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet:
        data = str(fleet.data)
        assert "no org 'nosuch'" in said(sapflow("orgs", "token", "nosuch", "--data", data), 1)
        assert "no org 'nosuch'" in said(sapflow("tail", "nosuch", "--no-follow", "--data", data), 1)


def test_no_fleet_and_no_door_are_said_with_what_to_do(tmp_path: Path) -> None:
    assert "start one with 'sapflow up" in said(sapflow("status", "--data", str(tmp_path)), 1)
    assert "write link://HOST:PORT" in said(sapflow("send", __file__, "--to", "gopher://x:1"), 2)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"ipfix+tcp://127.0.0.1:{unused.getsockname()[1]}"
        work = tmp_path / "work.ipfix"
        work.write_bytes(reference_work(1))
        assert "cannot be reached" in said(sapflow("send", str(work), "--to", url), 1)


@pytest.mark.timeout(120)
def test_c07_a_full_disk_means_no_acknowledgement_and_work_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The disk is full where the log's file may grow no further: writes fail, as with ENOSPC."""
    with running(tmp_path, collectors=1) as fleet:
        ledger, account = Ledger(), Account()
        tokens = {"acme": fleet.token("acme")}
        phloem = fleet.processes()["phloem-1"]
        room = sum(file.stat().st_size for file in (tmp_path / "log").iterdir()) + (1 << 20)

        def failures() -> int:
            found: int = fleet.status()["phloem-1"]["counts"]["commit"]["failures"]
            return found

        async def scenario() -> None:
            stop = trio.Event()
            await trio.sleep(1.5)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    partial(load, fleet.doors["link"], tokens, ledger, stop, meters=10, interval_s=0.05, records=100)
                )
                resource.prlimit(phloem, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
                stalled = -1
                with trio.fail_after(40):
                    # Pages that are free already take a little more after the first failure.
                    while not failures() or ledger.acknowledged_records > stalled:
                        stalled = ledger.acknowledged_records
                        await trio.sleep(2)
                assert stalled < ledger.sent_records
                resource.prlimit(phloem, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                await trio.sleep(4)
                stop.set()
                nursery.cancel_scope.deadline = trio.current_time() + 30
            await count(fleet, ledger, account)

        trio.run(scenario)
        assert fleet.processes()["phloem-1"] == phloem
    assert account.clean, account
    assert account.acknowledged_records == account.sent_records == account.stored_records
    lines = [json.loads(line) for line in (tmp_path / "up.log").read_text().splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("event") == "log cannot be written"]
    assert told
    assert "free space" in told[0]["reason"]
