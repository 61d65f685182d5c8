"""A whole balancer that was started as a successor."""

from pathlib import Path
from typing import Any

import trio

from balancer.node import run
from sapflow.config import BalancerConfig, Config, FleetConfig
from sapflow.monitor.machine import Machine


def a_config(directory: Path) -> Config:
    local = "127.0.0.1:0"
    return Config(
        data=str(directory),
        fleet=FleetConfig(coordinator_address=local),
        balancer=BalancerConfig(ipfix_tcp=local, udp="", link=local),
    )


async def test_a_successor_that_is_to_end_while_it_waits_for_its_turn_ends_at_once_and_did_nothing(
    tmp_path: Path,
) -> None:
    told: list[dict[str, Any]] = []
    machine = Machine(may_begin=trio.Event())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, a_config(tmp_path), "b1", "token", told.append, machine)
            while not told:
                await trio.sleep(0.01)
            (ready,) = told
            # Nobody accepts yet: whoever connects waits for the one before it, or for its turn.
            host, port = ready["addresses"]["ipfix_tcp"].split(":")
            waiting = await trio.open_tcp_stream(host, int(port))
            machine.drain.ask(5.0)
    assert told[1] == {"event": "drained", "name": "b1", "clean": True}
    await waiting.aclose()
