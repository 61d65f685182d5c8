"""The report of an incident: one HTML file with its plots inside (SVG), a table, what happened, what did not hold."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from datetime import date

import matplotlib
from attrs import frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.incident.scenario import Options, Plot, Recording, Scenario

INCHES = 6.4, 3.0
MANY_LINES = 6
"""More lines than these have no legend each: they are drawn thin, and their largest thick."""
MOST_EVENTS = 60

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 86rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; } .pair > div { flex: 1 1 34rem; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .9rem .25rem 0; text-align: left; }
.wrong { color: #b00020; font-weight: 600; } .right { color: #1b6e20; font-weight: 600; } p { max-width: 60rem; }
"""


@frozen
class Report:
    """Of one scenario, all that it played."""

    scenario: Scenario
    options: Options
    recordings: Sequence[Recording]

    def html(self) -> str:
        """All of it, in one file that needs no other."""
        scenario = self.scenario
        parts = [
            "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
            f"<title>{html.escape(scenario.title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{html.escape(scenario.title)}</h1>",
            *(f"<p>{html.escape(paragraph)}</p>" for paragraph in scenario.story),
            f"<p>{html.escape(self.command())}, {date.today().isoformat()}</p>",
            self._verdict(),
            "<h2>What came of it</h2>",
            self._table(),
            *map(self._plots, scenario.plots),
            "<h2>What happened</h2><div class='pair'>",
            *map(_events, self.recordings),
            "</div></body></html>",
        ]
        return "\n".join(parts)

    def command(self) -> str:
        """How it is played again."""
        options = self.options
        return (
            f"python -m tools.incident {self.scenario.name} --seed {options.seed} --meters {options.meters} "
            f"--minutes {options.minutes:g}"
        )

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: what, and a value for each recording."""
        names = list(dict.fromkeys(name for one in self.recordings for name in one.facts))
        return [(name, [one.facts.get(name, "-") for one in self.recordings]) for name in names]

    def _verdict(self) -> str:
        wrong = [f"{one.name}: {what}" for one in self.recordings for what in one.wrong]
        if not wrong:
            return "<p class='right'>All that must hold held.</p>"
        return "".join(f"<p class='wrong'>{html.escape(what)}</p>" for what in wrong)

    def _table(self) -> str:
        head = "".join(f"<th>{html.escape(one.name)}</th>" for one in self.recordings)
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{html.escape(value)}</td>' for value in values)}</tr>"
            for name, values in self.rows()
        )
        return f"<table><tr><th></th>{head}</tr>{rows}</table>"

    def _plots(self, plot: Plot) -> str:
        drawn = [one for one in self.recordings if plot.key in one.series]
        if not drawn:
            return ""
        figures = "".join(f"<div>{draw(plot, one)}</div>" for one in drawn)
        return f"<h2>{html.escape(plot.title)}</h2><div class='pair'>{figures}</div>"


def draw(plot: Plot, recording: Recording) -> str:
    """One plot of one recording, as SVG."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sapflow", "font.size": 9}):
        figure = Figure(INCHES, layout="constrained")
        axes = figure.subplots()
        lines = recording.series[plot.key]
        long = bool(recording.times) and recording.times[-1] > 1200
        times = [when / (60 if long else 1) for when in recording.times]
        _lines(axes, times, lines)
        if plot.limit is not None:
            axes.axhline(plot.limit, color="#b00020", linestyle="--", linewidth=1, label=plot.limit_is)
        if len(lines) <= MANY_LINES or plot.limit is not None:
            axes.legend(loc="upper right", frameon=False)
        for when, _ in recording.events[:MOST_EVENTS]:
            axes.axvline(when / (60 if long else 1), color="#999", linewidth=0.6, linestyle=":")
        axes.set(title=recording.name, xlabel="virtual minutes" if long else "virtual seconds", ylabel=plot.unit)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _lines(axes: Axes, times: list[float], lines: dict[str, list[float]]) -> None:
    many = len(lines) > MANY_LINES
    for name, values in lines.items():
        axes.plot(times, values, linewidth=0.9 if many else 1.4, label=None if many else name)
    if many:
        most = [max(values) for values in zip(*lines.values(), strict=True)]
        axes.plot(times, most, linewidth=1.8, color="#222", alpha=0.5)


def _events(recording: Recording) -> str:
    def rows(events: Iterable[tuple[float, str]]) -> str:
        return "".join(f"<tr><td>{when:,.0f} s</td><td>{html.escape(what)}</td></tr>" for when, what in events)

    more = len(recording.events) - MOST_EVENTS
    rest = f"<p>and {more:,} more</p>" if more > 0 else ""
    return (
        f"<div><h3>{html.escape(recording.name)}</h3><table>{rows(recording.events[:MOST_EVENTS])}</table>{rest}</div>"
    )
