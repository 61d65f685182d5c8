"""What `sapflow top` shows: two readings of all processes into rates, ratios, backlogs, loss and alarms; pure.

Figures that only grow are shown as what they grew by between the two readings, a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, frozen
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sapflow.cli.extents import batches, groups_of, mebibytes
from sapflow.client import Extent

LEAST_BYTES = 100_000
"""A ratio is shown where at least this came in between two readings: of less, a batch or two on their way are a large
part."""
NEAR = 0.9
"""Of a budget."""
MAX_ORGS = 20
"""Shown: those that bring most."""
_LOSSES = (
    ("udp", "lost_units", "lost on the way to us, by exporters' numbers"),
    ("udp", "kernel_drops", "datagrams dropped by the kernel: they came faster than they were read"),
    ("udp", "dropped_full", "datagrams dropped, since too much of their exporter is not durable yet"),
    ("intake", "lost_records", "records lost before they came, by exporters' numbers"),
    ("intake", "malformed", "messages that could not be read"),
    ("intake", "refused_sets", "sets left out, since they could not be read"),
)


@frozen
class Reading:
    """Each process's status at a moment, in seconds of any clock."""

    at: float
    statuses: Mapping[str, dict[str, Any]]
    drained: tuple[str, ...] = ()


@frozen
class Flow:
    """Of one process between two readings."""

    in_per_s: float
    out_per_s: float
    ratio: float | None


def flow_of(before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> Flow:
    """What a process took in and gave on; its `ratio` is None where too little came."""
    taken, given = (_total(now, way) - _total(before, way) for way in ("in", "out"))
    if taken < 0 or given < 0:  # it was started anew
        taken, given = _total(now, "in"), _total(now, "out")
    ratio = given / taken if taken >= LEAST_BYTES else None
    return Flow(taken / seconds, given / seconds, ratio)


_PLACES = {
    ("balancer", "in"): ("link", "link_door"),
    ("balancer", "out"): ("link", "link_door"),
    ("collector", "in"): ("endpoint",),
    ("collector", "out"): ("endpoint",),
    ("phloem", "in"): ("link",),
}


def _total(status: Mapping[str, Any], way: str) -> int:
    flow = status.get("flow", {})
    if (status.get("role"), way) == ("phloem", "out"):
        return int(flow.get("engine", {}).get("in", {}).get("bytes", 0))
    places = _PLACES.get((str(status.get("role")), way), ())
    return sum(int(flow.get(place, {}).get(way, {}).get("bytes", 0)) for place in places)


@define
class Top:
    """What is shown, from one reading to the next; of one org only, where `org` says so."""

    org: str | None = None

    def view(self, before: Reading, now: Reading, lost: Mapping[str, Any] | None = None) -> Group:
        """The screen. `lost` is what the org's ledger tells of records."""
        seconds = max(now.at - before.at, 1e-6)
        flows = {
            name: flow_of(before.statuses.get(name, {}), status, seconds)
            for name, status in now.statuses.items()
            if "error" not in status
        }
        parts: list[RenderableType] = [self._processes(now, flows), self._orgs(before, now, seconds)]
        groups = [one for one in groups_of(now.statuses.values()) if self._is_of(one)]
        if groups:
            parts.append(_groups(groups))
        if lost is not None:
            parts.append(Text("ledger  " + "  ".join(f"{what} {value:,}" for what, value in lost.items())))
        found = [*self.alarms(before, now)]
        parts.append(Text("\n".join(found), style="bold red") if found else Text("no alarms", style="green"))
        return Group(*parts)

    def alarms(self, before: Reading, now: Reading) -> Iterator[str]:
        """What somebody should look at, a line each."""
        for name, status in sorted(now.statuses.items()):
            if "error" in status:
                yield f"{name}: does not answer: {status['error']}"
                continue
            yield from _of_gauges(name, status)
            yield from _of_losses(name, before.statuses.get(name, {}), status)
        for name in now.drained:
            yield f"{name}: drained; 'sapflow restart {name}' starts it"

    def _processes(self, now: Reading, flows: Mapping[str, Flow]) -> Table:
        table = _table("process", "CPU", "RSS MiB", "lag ms", "in MB/s", "out MB/s", "out/in", "expected", "held")
        for name, status in sorted(now.statuses.items()):
            if "error" in status:
                table.add_row(name, *["-"] * 8, style="red")
                continue
            gauges, flow = status["gauges"], flows[name]
            table.add_row(
                name,
                f"{gauges['cpu']:.0%}",
                f"{gauges['rss_bytes'] / 2**20:.0f}",
                f"{gauges['lag_s'] * 1000:.1f}",
                f"{flow.in_per_s / 1e6:.2f}",
                f"{flow.out_per_s / 1e6:.2f}",
                _figure(flow.ratio),
                _figure(status["ratio"]["expected"]),
                f"{_held(gauges) / gauges['budget_bytes']:.0%}" if gauges.get("budget_bytes") else "-",
            )
        for name in now.drained:
            table.add_row(name, "drained", *["-"] * 7, style="dim")
        return table

    def _orgs(self, before: Reading, now: Reading, seconds: float) -> Table:
        table = _table("org", "in MB/s", "out MB/s", "streams", "held MiB", "durable", "live", "collectors")
        rows: dict[str, dict[str, float]] = {}
        for name, status in now.statuses.items():
            earlier = before.statuses.get(name, {}).get("orgs", {})
            for org, its in (status.get("orgs") or {}).items() if status.get("role") == "collector" else ():
                if self.org not in (None, org):
                    continue
                row = rows.setdefault(org, dict.fromkeys(("in", "out", "streams", "held", "durable", "live", "on"), 0))
                for way in ("in", "out"):
                    grown = its[way]["bytes"] - earlier.get(org, {}).get(way, {}).get("bytes", 0)
                    row[way] += max(grown, 0) / seconds
                row["streams"] += its["streams"]
                row["held"] += its["held_bytes"]
                row["durable"] = max(row["durable"], its["durable"])
                row["live"] += its["live"]
                row["on"] += bool(its["streams"])
        largest = sorted(rows.items(), key=lambda row: (-row[1]["in"], row[0]))
        for org, row in largest[:MAX_ORGS]:
            table.add_row(
                org,
                f"{row['in'] / 1e6:.2f}",
                f"{row['out'] / 1e6:.2f}",
                f"{row['streams']:,.0f}",
                f"{row['held'] / 2**20:.1f}",
                f"{row['durable']:.0f}",
                f"{row['live']:.0f}",
                f"{row['on']:.0f}",
            )
        if len(largest) > MAX_ORGS:
            table.add_row(f"and {len(largest) - MAX_ORGS:,} more", *[""] * 7, style="dim")
        return table

    def _is_of(self, group: Mapping[str, Any]) -> bool:
        return self.org in (None, group["org"])


def _of_gauges(name: str, status: Mapping[str, Any]) -> Iterator[str]:
    gauges = status["gauges"]
    if gauges.get("flow_alarm"):
        out_in, expected = gauges["flow_out_in"], _figure(status["ratio"]["expected"])
        yield f"{name}: out/in is {out_in:.2f} for about ten seconds, and should be {expected}"
    if gauges.get("coordinator_alarm"):
        yield f"{name}: asks the coordinator more often than what changes explains"
    budget = gauges.get("budget_bytes", 0)
    if budget and _held(gauges) > NEAR * budget:
        yield f"{name}: holds {_held(gauges) / budget:.0%} of its budget; what is behind it is slow, or away"
    for one in status.get("exits", ()):
        if one["state"] == "waiting":
            yield f"{name}: exit {one['name']} of {one['org']} waits: {one['reason']}"


def _of_losses(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for section, key, what in _LOSSES:
        grown = now.get("counts", {}).get(section, {}).get(key, 0)
        grown -= before.get("counts", {}).get(section, {}).get(key, 0)
        if grown > 0:
            yield f"{name}: {grown:,} {what}"


def _groups(groups: list[dict[str, Any]]) -> Table:
    table = _table("org", "group", "members", "position", "lag batches", "lag MiB")
    for one in sorted(groups, key=lambda group: -int(group["lag"]["positions"])):
        lag = Extent(**one["lag"])
        members, position = str(one["members"]), f"{one['position']:,}"
        table.add_row(one["org"], one["group"], members, position, batches(lag), mebibytes(lag))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for other in others:
        table.add_column(other, justify="left" if other == "group" else "right", no_wrap=True)
    return table


def _held(gauges: Mapping[str, float]) -> float:
    return gauges.get("held_bytes", gauges.get("unacknowledged_bytes", 0))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
