"""Handlers that outlive their receiver: a collector sends out many times what it takes in, until somebody looks.

In 2012 the figure that nobody looked at was 16, where 4.4 was right. Here one Phloem node receives, so that 1 is right;
a handler that stays behind is a connection that takes everything under the node's own name, and does nothing with it.
"""

from __future__ import annotations

import trio
from attrs import define, field

from sapflow.link import BatchReceived, Connection, CreditPool, CreditWanted, Event, Opened, Side, StreamEnded, Welcomed
from sapflow.link.frames import Hint
from sapflow.runtime.dial import dial
from sapflow.runtime.session import LinkSession
from tools.incident.scenario import Cue, Options, Plot, Recording, Scenario
from tools.incident.stage import Production, Stage, play
from tools.simulate.fleet import MIB, TOKEN, Size
from tools.simulate.hosts import enter

RECEIVER = "phloem-1"
HANDLERS = 15
"""On each collector, in the end: it then sends out 16 times what it takes in."""
BEGINS, ENDS = 1 / 4, 3 / 4
ALARM_S = 10.0
OFF = 1.05
"""Times what is right: from here on it is a leak."""


@define
class _Handler:
    """One that stayed behind: it reads, gives credit, and acknowledges nothing."""

    address: str
    pool: CreditPool = field(factory=lambda: CreditPool(32 * MIB, org_share=1.0))
    orgs: dict[int, str] = field(factory=dict)

    async def run(self) -> None:
        """Take everything of one collector until cancelled."""
        connection = Connection(Side.CLIENT)
        session = LinkSession(
            await dial(self.address, timeout_s=5.0),
            connection,
            peer=self.address,
            idle_timeout_s=3600.0,
            max_unsent_bytes=MIB,
        )
        async with session.open():
            session.send(connection.hello(Hint(name=RECEIVER), role="phloem", name=RECEIVER, token=TOKEN))
            async for events in session.events():
                for event in events:
                    self._handle(session, event)
                for key, limit in self.pool.turn():
                    assert isinstance(key, int)
                    session.send(connection.grant(key, limit))

    def _handle(self, session: LinkSession, event: Event) -> None:
        match event:
            case Welcomed():
                session.send(session.connection.subscribe(orgs=["*"]))
            case Opened():
                self.orgs[event.handle] = event.org
                self.pool.open(event.handle, event.org)
            case StreamEnded(handle):
                self.pool.close(handle)
            case CreditWanted(handle, limit):
                self.pool.want(handle, limit)
            case BatchReceived(handle, batch):
                self.pool.received(handle, batch.size)
                self.pool.release(self.orgs[handle], batch.size)
            case _:
                return


async def _leak(stage: Stage) -> None:
    """One more handler on every collector, again and again; all of them go at the end."""
    stage.mark("leaking")
    lasts_s = (ENDS - BEGINS) * stage.options.seconds
    addresses = [stage.link_address(process.name) for process in stage.collectors()]
    enter(stage.fleet.host("leaking", "10.0.9.1"))
    with trio.move_on_after(lasts_s):
        async with trio.open_nursery() as nursery:
            for _ in range(HANDLERS):
                for address in addresses:
                    nursery.start_soon(_Handler(address).run)
                await trio.sleep(lasts_s / (HANDLERS + 1))
            await trio.sleep_forever()
    stage.mark("ended")
    stage.note("the handlers are gone")


def _figures(stage: Stage) -> dict[str, dict[str, float]]:
    ratios: dict[str, float] = {}
    alarms = 0
    for process in stage.collectors():
        if process.status is not None:
            gauges = process.status()["gauges"]
            ratios[process.name] = gauges["flow_out_in"]
            alarms += gauges["flow_alarm"]
    return {"ratio": ratios, "alarms": {"collectors that say so": alarms}}


def _check(stage: Stage) -> None:
    recording, marks = stage.recording, stage.marks
    times, alarms = recording.times, stage.rates("alarms")["collectors that say so"]
    ratio = [max(found) for found in zip(*stage.rates("ratio").values(), strict=True)]
    leaks_at = next((when for when, found in zip(times, ratio, strict=True) if found > OFF), float("inf"))
    told_at = next((when for when, found in zip(times, alarms, strict=True) if found), float("inf"))
    recording.facts |= {
        "most bytes out for each byte in": f"{max(ratio):.1f}, where 1.0 is right",
        "alarm": f"{told_at - leaks_at:.0f} s after the first handler",
        "alarms in the end": f"{alarms[-1]:.0f}",
    }
    recording.require(max(ratio) > HANDLERS, f"the leak did not leak: {max(ratio):.1f}")
    recording.require(told_at >= marks["leaking"], "there was an alarm when nothing leaked")
    recording.require(told_at - leaks_at <= ALARM_S, f"no alarm within {ALARM_S:g} s of the leak")
    recording.require(not alarms[-1], "the alarm did not end with the leak")


def _play(options: Options) -> list[Recording]:
    size = Size(
        balancers=1,
        collectors=2,
        meters=options.meters,
        spooled=0,
        exporters=0,
        orgs=4,
        readers=0,
        interval_s=max(2.0, options.meters / 50),
        records=50,
    )
    cues = (Cue(BEGINS, "handlers stay behind, one more on every collector again and again", _leak),)
    production = Production(size, cues, capacity_mbps=1000.0, check=_check, figures=_figures)
    return [play(production, options)]


SCENARIO = Scenario(
    "leak",
    "Handlers that outlive their receiver",
    (
        "A subscription is made anew on every reconnect, and the old one is not let go of. Everything works; the "
        "collector sends each byte once more for each that stayed behind, until the network is full. In 2012 it was "
        "16 times what came in, where 4.4 was right, and nobody had looked at that figure.",
        "Each collector holds what goes out against what should: once to each receiver, by its name, however many "
        "connections it has. What is off to one side for nine seconds is an alarm.",
    ),
    (
        Plot("ratio", "bytes out for each byte in, of each collector", "out/in", 1.0, "what is right"),
        Plot("alarms", "alarms", "collectors"),
        Plot("load", "load of each collector", "Mbps"),
        Plot("waiting", "records that are not durable yet", "records"),
    ),
    _play,
    meters=100,
    minutes=2.0,
)
