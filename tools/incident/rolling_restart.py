"""Every process is ended and started again, one after the other, under load."""

from __future__ import annotations

import trio

from tools.incident.scenario import Cue, Options, Plot, Recording, Scenario
from tools.incident.stage import BALANCE_OVER_S, STEP_S, Production, Stage, play
from tools.simulate.fleet import Size

PAUSE_S = 10.0
"""Between one process that is back and the next."""
BACK_S = 10.0
"""Each is ready again, and known to all, within this."""
BALANCE_AFTER_S = 30.0
MOST = 1.25
MOST_WAIT_S = 10.0
"""No batch waits longer than this to be durable."""


async def _restart(stage: Stage) -> None:
    stage.mark("began")
    longest_s = 0.0
    for process in list(stage.fleet.processes.values()):
        stage.note(f"{process.name} is restarted")
        began = trio.current_time()
        await process.terminate()
        with trio.move_on_after(BACK_S) as waiting:
            await trio.sleep(STEP_S)
            while not stage.fleet.is_whole():
                await trio.sleep(STEP_S)
        stage.recording.require(not waiting.cancelled_caught, f"{process.name} was not back within {BACK_S:g} s")
        longest_s = max(longest_s, trio.current_time() - began)
        await trio.sleep(PAUSE_S)
    stage.recording.facts["longest restart"] = f"{longest_s:.1f} s"
    stage.mark("ended")


def _check(stage: Stage) -> None:
    recording, marks = stage.recording, stage.marks
    recording.require("ended" in marks, "not every process was restarted in time; give it more --minutes")
    if "ended" not in marks:
        return
    latencies = stage.senders.ledger.quantiles()
    starts = {name: process.starts for name, process in stage.fleet.processes.items()}
    recording.facts |= {
        "processes restarted": f"{sum(count > 1 for count in starts.values())} of {len(starts)}",
        "median until durable": f"{latencies['p50']:.3f} s",
        "p99 until durable": f"{latencies['p99']:.3f} s",
        "longest until durable": f"{latencies['max']:.3f} s",
    }
    recording.require(all(count > 1 for count in starts.values()), f"not every process was restarted: {starts}")
    recording.require(latencies["max"] <= MOST_WAIT_S, f"a batch waited for {latencies['max']:.1f} s")
    last_s = stage.options.seconds - BALANCE_OVER_S
    if marks["ended"] + BALANCE_AFTER_S < last_s:
        ratio = stage.balance(last_s)
        recording.facts["max/mean at the end"] = f"{ratio:.2f}"
        recording.require(ratio <= MOST, f"at the end a collector had {ratio:.2f} times the mean")


def _play(options: Options) -> list[Recording]:
    size = Size(
        balancers=2,
        collectors=4,
        meters=options.meters,
        spooled=1,
        exporters=2,
        orgs=5,
        readers=1,
        interval_s=max(2.0, options.meters / 100),
        records=100,
    )
    cues = (Cue(0.05, "all processes are restarted, one after the other", _restart),)
    return [play(Production(size, cues, capacity_mbps=1000.0, check=_check), options)]


SCENARIO = Scenario(
    "rolling-restart",
    "Every process restarted under load",
    (
        "A new version is rolled out: each balancer, collector, meter's host and the Phloem node is ended in good "
        "order and started again, while all meters go on sending.",
        "What is not acknowledged is kept by whoever sent it, and sent again. A consumer reads along all the time, "
        "and must see each batch once and in order.",
    ),
    (
        Plot("alive", "collectors alive", "collectors"),
        Plot("load", "load of each collector", "Mbps"),
        Plot("waiting", "records that are not durable yet", "records"),
        Plot("memory", "memory that each collector holds of batches", "MiB"),
    ),
    _play,
    meters=200,
    minutes=4.0,
)
