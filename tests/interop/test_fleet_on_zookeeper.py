"""A whole fleet whose coordinator is a real ZooKeeper: records flow, whatever becomes of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
from tools.chaos import Account, count
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.peers import zookeeper

from tests.peers import needs


async def until_members(fleet: Fleet, names: set[str]) -> None:
    with trio.fail_after(40):
        while True:
            status = await trio.to_thread.run_sync(fleet.status)
            if {member["name"] for member in status["balancer"].get("members", [])} == names:
                return
            await trio.sleep(0.2)


@needs("zookeeper")
@pytest.mark.timeout(180)
def test_records_flow_on_while_zookeeper_is_killed_and_come_back_to_it_with_a_killed_collector(tmp_path: Path) -> None:
    with zookeeper.server(tmp_path / "zookeeper") as server:
        config = tmp_path / "fleet.toml"
        config.write_text(f'[fleet]\ncoordinator = "zookeeper"\nzookeeper = "{server.address}"\n')
        with running(tmp_path / "fleet", collectors=2, config=config) as fleet:
            ledger, account = Ledger(), Account()
            tokens = {"acme": fleet.token("acme")}

            async def scenario() -> None:
                names = {"balancer", "collector-1", "collector-2", "phloem-1"}
                await until_members(fleet, names)
                stop = trio.Event()
                pace = {"meters": 10, "interval_s": 0.2, "records": 8}
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(load, fleet.doors["link"], tokens, ledger, stop, **pace))  # type: ignore[arg-type]
                    await trio.sleep(3)
                    await trio.to_thread.run_sync(server.kill)
                    before = ledger.acknowledged_records
                    await trio.sleep(4)
                    # Nothing that carries data waits for it.
                    assert ledger.acknowledged_records > before + 500
                    await trio.to_thread.run_sync(server.start)
                    await until_members(fleet, names)
                    fleet.kill("collector-1")
                    await until_members(fleet, names)
                    before = ledger.acknowledged_records
                    await trio.sleep(3)
                    assert ledger.acknowledged_records > before + 500
                    stop.set()
                    nursery.cancel_scope.deadline = trio.current_time() + 40
                await count(fleet, ledger, account)

            trio.run(scenario)
            status = fleet.status()
    assert account.clean, account
    assert account.acknowledged_records == account.sent_records == account.stored_records > 1000
    for name in ("balancer", "collector-2", "phloem-1"):
        assert status[name]["counts"]["coordinator"]["operations"] > 0
