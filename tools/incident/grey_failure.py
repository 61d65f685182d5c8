"""A collector is up, reports that it is idle, and takes nothing in: its traffic drains away within ten seconds."""

from __future__ import annotations

from tools.incident.scenario import Cue, Options, Plot, Recording, Scenario
from tools.incident.stage import Production, Stage, play
from tools.simulate.fleet import Size

GREY = "collector-2"
BEGINS, ENDS = 1 / 3, 2 / 3
DRAINED_S = 10.0
OWN = 3
"""Connections that a balancer may have to a collector for itself: for control, for its exporters' streams, and one more
for these while it is made anew."""


async def _begin(stage: Stage) -> None:
    stage.mark("grey")
    stage.process(GREY).host.reads = False


async def _end(stage: Stage) -> None:
    stage.mark("well")
    host = stage.process(GREY).host
    host.reads = True
    host.go_on()


def _figures(stage: Stage) -> dict[str, dict[str, float]]:
    return {"links": {process.name: stage.links_to(process.name) for process in stage.collectors()}}


def _check(stage: Stage) -> None:
    recording, marks = stage.recording, stage.marks
    own = OWN * stage.fleet.size.balancers
    links = stage.rates("links")[GREY]
    after = [
        (when - marks["grey"], found)
        for when, found in zip(recording.times, links, strict=True)
        if marks["grey"] <= when < marks["well"]
    ]
    drained_s = next((seconds for seconds, found in after if found <= own), float("inf"))
    most = max(links)
    well_s = _as_before(stage)
    recording.facts |= {
        "connections of balancers to it, most": f"{most:.0f}",
        "only their own are left after": f"{drained_s:.0f} s",
        "what waits is as before after": f"{well_s:.0f} s",
        "connections to it in the end": f"{links[-1]:.0f}",
    }
    recording.require(most > own, "nothing was carried to the collector before it failed")
    recording.require(well_s <= DRAINED_S, f"{DRAINED_S:g} s after {GREY} took nothing more, batches still waited")
    recording.require(drained_s <= DRAINED_S, f"{GREY} had meters' links {DRAINED_S:g} s after it took nothing more")


def _as_before(stage: Stage) -> float:
    """Seconds from the failure until no more waits to be durable than before it, and stays so until it ends."""
    begins, ends = stage.marks["grey"], stage.marks["well"]
    waiting = list(zip(stage.recording.times, stage.rates("waiting")["records not durable"], strict=True))
    usual = max(found for when, found in waiting if when < begins)
    return max((when - begins for when, found in waiting if begins <= when < ends and found > usual), default=0.0) + 1


def _play(options: Options) -> list[Recording]:
    size = Size(
        balancers=2,
        collectors=5,
        meters=options.meters,
        spooled=0,
        exporters=2,
        orgs=10,
        readers=0,
        interval_s=max(2.0, options.meters / 100),
        records=100,
    )
    cues = (
        Cue(BEGINS, f"{GREY} takes nothing in any more, and says that it is idle", _begin),
        Cue(ENDS, f"{GREY} is well again", _end),
    )
    return [play(Production(size, cues, capacity_mbps=1000.0, check=_check, figures=_figures), options)]


SCENARIO = Scenario(
    "grey-failure",
    "A collector that says it is idle, and does nothing",
    (
        "A process is up, answers, reports once a second that nothing weighs on it, and reads nothing of what it is "
        "sent. Whoever places by its reports, or by its few connections, sends it ever more.",
        "A balancer holds what a collector is given against what comes back of it. One that gives nothing back while "
        "others do is left: its streams are moved, the links carried to it are cut, and for a while it gets none.",
    ),
    (
        Plot("links", "connections from the balancers to each collector", "connections"),
        Plot("load", "load of each collector", "Mbps"),
        Plot("waiting", "records that are not durable yet", "records"),
        Plot("backlog", "backlog: what waits to be durable", "MiB"),
    ),
    _play,
    meters=200,
    minutes=2.0,
)
