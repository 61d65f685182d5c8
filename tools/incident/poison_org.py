"""One org's meters send what cannot be read, over and over: it is theirs alone, and no collector falls of it."""

from __future__ import annotations

import trio

from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.link.frames import Hint
from sapflow.runtime.dial import dial
from tools.incident.scenario import Cue, Options, Plot, Recording, Scenario
from tools.incident.stage import Production, Stage, play
from tools.simulate.fleet import Size
from tools.simulate.hosts import Host, enter

POISON = "org-1"
SHARE = 0.1
"""So many meters as this part of all come beside them, and send poison."""
BEGINS = 1 / 3
POISON_EVERY_S = 1.0
POISONED = b"\x00\x0a\xff\xff" + bytes(60)
"""An IPFIX header that claims 65,535 bytes, of which 60 are there."""
MOST_CLOSED = 5.0
"""Links that each poisonous meter may have closed in a second, over all of the time."""
MOST_LONGER = 3.0
"""Times the p99 of before, that others' batches may take …"""
LEAST_P99_S = 0.25
"""… where that is more than this."""


async def _poison(stage: Stage) -> None:
    stage.mark("poisoned")
    assert stage.nursery is not None
    stage.senders.ledger.latencies_s.clear()
    for number in range(1, _poisonous(stage.options) + 1):
        host = stage.fleet.host(f"poison-{number}", f"10.6.{number // 256}.{number % 256}")
        door = f"10.0.0.{1 + number % stage.fleet.size.balancers}:4740"
        stage.nursery.start_soon(_meter, host, stage.fleet.tokens[POISON], door)


def _poisonous(options: Options) -> int:
    return max(2, round(options.meters * SHARE))


async def _meter(host: Host, token: str, door: str) -> None:
    """A meter with a good credential, whose batches close every link that they come over."""
    enter(host)
    uplink = Uplink(
        FixedTarget(Target("the door", door)),
        lambda target: dial(target.address, timeout_s=5.0),
        UplinkSettings(
            hello={"role": "meter", "token": token, "name": host.name}, hint=Hint(org=POISON, name=host.name)
        ),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(uplink.run)
        stream = uplink.open_stream(POISON, host.name)
        while True:
            await stream.put(Draft(1, 1, POISONED))
            await trio.sleep(POISON_EVERY_S)


async def _before(stage: Stage) -> None:
    stage.marks["p99"] = stage.senders.ledger.quantiles()["p99"]


def _figures(stage: Stage) -> dict[str, dict[str, float]]:
    found = {}
    for process in stage.collectors():
        if process.status is not None:
            found[process.name] = float(process.status()["counts"]["link"]["malformed"])
    return {"malformed": found}


def _check(stage: Stage) -> None:
    recording = stage.recording
    before, after = stage.marks["p99"], stage.senders.ledger.quantiles()["p99"]
    closed = sum(values[-1] for values in stage.rates("malformed").values())
    seconds = recording.times[-1] - stage.marks["poisoned"]
    alive = min(stage.rates("alive")["collectors"])
    recording.facts |= {
        "links closed for poison": f"{closed:,.0f}, {closed / seconds:.1f} each second",
        "fewest collectors alive": f"{alive:.0f} of {stage.fleet.size.collectors}",
        "p99 until durable, before": f"{before:.3f} s",
        "p99 until durable, with poison": f"{after:.3f} s",
        "restarts of processes": f"{sum(process.starts - 1 for process in stage.fleet.processes.values())}",
    }
    recording.require(closed > 0, "no poison reached a collector")
    each = closed / seconds / _poisonous(stage.options)
    recording.require(each <= MOST_CLOSED, f"a poisonous meter comes back {each:.1f} times a second: no pause grows")
    recording.require(alive == stage.fleet.size.collectors, "a collector fell")
    slow = after > max(LEAST_P99_S, MOST_LONGER * before)
    recording.require(not slow, f"others' batches took {after:.3f} s, where it was {before:.3f}")


def _play(options: Options) -> list[Recording]:
    size = Size(
        balancers=2,
        collectors=4,
        meters=options.meters,
        spooled=0,
        exporters=2,
        orgs=5,
        readers=0,
        interval_s=max(2.0, options.meters / 100),
        records=100,
    )
    cues = (
        Cue(BEGINS * 0.99, "", _before),
        Cue(BEGINS, f"meters of {POISON} come that send what cannot be read", _poison),
    )
    production = Production(size, cues, capacity_mbps=1000.0, check=_check, figures=_figures)
    return [play(production, options)]


SCENARIO = Scenario(
    "poison-org",
    "One org's meters send what cannot be read",
    (
        "A customer's new agent writes messages that claim more bytes than they have. A service that dies of such a "
        "message is killed collector by collector, as the agents come back and try the next.",
        "A collector closes the link that such a batch came over, says which byte was wrong, and goes on with all "
        "others; the agent comes back with a pause, and gives the batch up. Other orgs' records are as fast as before.",
    ),
    (
        Plot("malformed", "links closed by each collector for what could not be read", "links"),
        Plot("alive", "collectors alive", "collectors"),
        Plot("load", "load of each collector", "Mbps"),
        Plot("waiting", "records of all that are not durable yet", "records"),
    ),
    _play,
    meters=200,
    minutes=2.0,
)
