"""July 31, 2012: one customer's traffic rises by 60 Mbps at once.

Then: a model (`then.py`). Now: the real fleet, with the same surge, the same meters, and collectors that can take as
much; and, since no collector dies of the surge, the one that has most of that customer is killed in the middle of it.
"""

from __future__ import annotations

import random

from attrs import evolve

from tools.incident.scenario import Cue, Options, Plot, Recording, Scenario
from tools.incident.stage import BALANCE_OVER_S, BYTES_STAND_FOR, LEAST_LATENESS_S, MBPS, Production, Stage, play
from tools.incident.then import Model, Then
from tools.simulate.fleet import Size

METERS = 5000
"""All rates are of so many; with fewer all is in proportion."""
ORGS = 10
COLLECTORS = 10
FEWEST_COLLECTORS = 4
"""A small fleet has fewer, each of which can take more: else one meter of the customer is a large part of one."""
METER_MBPS = 0.012
SURGE_MBPS = 60.0
CAPACITY_MBPS = 24.0
"""Of one collector: one customer's meters with the surge are 66 Mbps, ten collectors have 240."""
ACCEPT_S = 0.002
INTERVAL_S = 20.0
"""Between a meter's batches; in a small fleet less, since else a collector has one of them at a time …"""
LEAST_INTERVAL_S = 4.0
"""… but not less than this."""
SURGE = 0.2, 0.8
KILL = 0.5
AWAY_S = 15.0
CUSTOMER = "org-1"
BALANCE_AFTER_S = 30.0
MOST = 1.25
RECORD_BYTES = 56


def _part(options: Options) -> float:
    return options.meters / METERS


def _collectors(options: Options) -> int:
    return max(FEWEST_COLLECTORS, min(COLLECTORS, round(COLLECTORS * _part(options))))


def _capacity_mbps(options: Options) -> float:
    """Of one collector: all of them together can take the same part of what is sent, however many there are."""
    return CAPACITY_MBPS * COLLECTORS / _collectors(options) * _part(options)


def _accept_s(options: Options) -> float:
    """A smaller fleet has less of everything, the collectors' time too."""
    return ACCEPT_S / _part(options) * _collectors(options) / COLLECTORS


def _production(options: Options) -> Production:
    interval_s = max(LEAST_INTERVAL_S, INTERVAL_S * _part(options))
    records = METER_MBPS * MBPS * interval_s / RECORD_BYTES / BYTES_STAND_FOR
    size = Size(
        balancers=3,
        collectors=_collectors(options),
        meters=options.meters,
        spooled=0,
        exporters=0,
        orgs=ORGS,
        readers=0,
        interval_s=interval_s,
        records=round(records),
    )
    return Production(
        size,
        (
            Cue(SURGE[0], f"{CUSTOMER} sends {SURGE_MBPS * _part(options):g} Mbps more", _surge),
            Cue(KILL, "", _kill),
            Cue(SURGE[1], "the surge is over", _calm),
        ),
        capacity_mbps=_capacity_mbps(options),
        accept_s=_accept_s(options),
        check=_check,
    )


def _times() -> float:
    """How many times the usual the customer sends in the surge."""
    return 1 + SURGE_MBPS / (METER_MBPS * METERS / ORGS)


async def _surge(stage: Stage) -> None:
    stage.mark("surge")
    stage.load(CUSTOMER, _times())


async def _calm(stage: Stage) -> None:
    stage.mark("calm")
    stage.load(CUSTOMER, 1.0)


async def _kill(stage: Stage) -> None:
    victim = stage.collector_of(CUSTOMER)
    stage.mark("killed")
    stage.note(f"{victim}, which has most of {CUSTOMER}, is killed, and stays away for {AWAY_S:g} s")
    await stage.kill(victim, AWAY_S)
    stage.mark("back")


def _check(stage: Stage) -> None:
    recording, marks = stage.recording, stage.marks
    whole_s = [
        when
        for when, backlog in zip(recording.times, stage.rates("waiting")["records not durable"], strict=True)
        if when > marks["killed"] and backlog <= _usually_waiting(stage)
    ]
    recovered_s = whole_s[0] - marks["killed"] if whole_s else float("inf")
    # Each meter sends once in an interval: over less, chance decides which of them are seen.
    over_s = max(BALANCE_OVER_S, stage.fleet.size.interval_s)
    # Where the next thing happens before that, there is no half a minute to look at.
    balances = {
        name: stage.balance(marks[name] + BALANCE_AFTER_S, over_s)
        for name, until in (("surge", marks["killed"]), ("back", marks["calm"]))
        if marks[name] + BALANCE_AFTER_S + over_s < until
    }
    most_late_s = max(map(max, stage.rates("late").values()))
    most_mbps = max(map(max, stage.rates().values()))
    capacity = stage.production.capacity_mbps
    recording.facts |= {
        "collectors that died": "0 of the surge, 1 killed",
        "time to recover": f"{recovered_s:.0f} s from the kill",
        "fewest collectors alive": f"{min(stage.rates('alive')['collectors']):.0f} of {stage.fleet.size.collectors}",
        "most memory of one collector": f"{max(map(max, stage.rates('memory').values())):,.0f} MiB",
        "most load of one collector": f"{most_mbps:.2f} of {capacity:g} Mbps",
        "most lateness of a collector": f"{most_late_s:.2f} s",
    }
    for name, ratio in balances.items():
        recording.facts[f"max/mean {BALANCE_AFTER_S:g} s after: {name}"] = f"{ratio:.2f}"
        recording.require(ratio <= MOST, f"{BALANCE_AFTER_S:g} s after '{name}' one had {ratio:.2f} of the mean")
    recording.require(recovered_s <= BALANCE_AFTER_S, f"{recovered_s:.0f} s after the kill batches were still late")
    recording.require(
        most_late_s <= LEAST_LATENESS_S, f"a collector was {most_late_s:.2f} s late: it had more than it can take"
    )


def _usually_waiting(stage: Stage) -> float:
    """Most that was not durable yet at any moment between the surge's beginning and the kill."""
    waiting = stage.rates("waiting")["records not durable"]
    marks = stage.marks
    return max(
        value
        for when, value in zip(stage.recording.times, waiting, strict=True)
        if marks["surge"] <= when <= marks["killed"]
    )


def as_it_was(options: Options) -> Recording:
    """The model, with the surge, the meters and the collectors of `options`."""
    part = _part(options)
    then = Then(
        orgs=ORGS,
        meters=options.meters,
        base_bps=METER_MBPS * options.meters * MBPS,
        surge_bps=SURGE_MBPS * part * MBPS,
        surge=(SURGE[0] * options.seconds, SURGE[1] * options.seconds),
        collectors=_collectors(options),
        capacity_bps=_capacity_mbps(options) * MBPS,
        accept_s=_accept_s(options),
        scale=part,
    )
    return Model(then, random.Random(f"then {options.seed}")).run()


def _play(options: Options) -> list[Recording]:
    return [as_it_was(options), play(evolve(_production(options), name="sapflow"), options)]


SCENARIO = Scenario(
    "july-31",
    "July 31, 2012: one customer's traffic rises by 60 Mbps",
    (
        "A telemetry service was down for six hours. DNS had put all of one customer's meters on one collector; a "
        "surge killed it, its meters came back in one herd, and the next collectors fell as they started. Phloem's "
        "consuming threads waited for connects to the dead, its backlog grew in memory until it was killed, and Kafka "
        "read every file for 20 to 60 minutes.",
        "First it is played as a small model of what was there then: cached DNS, connects that block the threads that "
        "consume, queues without a bound. It is a model: its figures are guesses, written down in "
        "tools/incident/then.py and chosen so that the parts fail each other as they did; and it ends the surge when "
        "the other one does, which the real day did not.",
        "Then it is played on sapflow's own code: balancers, collectors, meters, Phloem and the coordinator as they "
        "run in production, in virtual time. The surge, the meters and what a collector can take are the same. Since "
        "no collector dies of the surge there, one is killed.",
    ),
    (
        Plot("load", "load of each collector", "Mbps"),
        Plot("alive", "collectors alive", "collectors"),
        Plot("backlog", "backlog: what waits to be durable", "MiB"),
        Plot("memory", "memory that each collector holds of batches", "MiB"),
        Plot("lost", "records lost", "records"),
        Plot("late", "how late each collector's event loop is", "s", LEAST_LATENESS_S, "more than it can take"),
        Plot("threads", "Phloem's threads that wait for a connect", "threads"),
    ),
    _play,
    meters=METERS,
    minutes=5.0,
)
