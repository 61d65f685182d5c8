"""Each incident, played small: what must hold holds, and the same seed gives the same trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools.incident.july_31 import as_it_was
from tools.incident.report import Report
from tools.incident.scenario import Options, Recording
from tools.incident.scenarios import SCENARIOS

SMALL = {
    "july-31": Options(meters=120, minutes=2.0),
    "leak": Options(meters=20, minutes=1.0),
    "watch-storm": Options(minutes=1.0),
    "rolling-restart": Options(meters=20, minutes=3.5),
    "poison-org": Options(meters=30, minutes=1.0),
    "grey-failure": Options(meters=60, minutes=1.0),
}


def test_every_incident_is_played() -> None:
    assert SMALL.keys() == SCENARIOS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_what_must_hold_in_an_incident_holds(name: str) -> None:
    scenario, options = SCENARIOS[name], SMALL[name]
    recordings = scenario.play(options)
    assert not any(one.wrong for one in recordings), [one.wrong for one in recordings]
    assert all(one.times and one.facts for one in recordings)
    page = Report(scenario, options, recordings).html()
    drawn = sum(plot.key in one.series for plot in scenario.plots for one in recordings)
    assert page.count("<svg") == drawn > 0
    assert "<script" not in page
    assert "src=" not in page


def test_the_model_of_july_31_falls_as_it_did() -> None:
    then = as_it_was(Options(meters=5000))
    events = " ".join(what for _, what in then.events)
    assert events.count("dies of its memory") > 1
    assert "Kafka reads its files" in events
    assert then.facts["records lost"] != "0"


def played(hash_seed: str, *arguments: str) -> tuple[int, str]:
    """The command's answer and how it ended, in a process of its own."""
    command = [sys.executable, "-m", "tools.incident", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout or done.stderr


def test_the_same_seed_gives_the_same_trace_in_any_process(tmp_path: Path) -> None:
    report = f"{tmp_path}/report.html"
    said = [
        played(hash_seed, "grey-failure", "--meters", "30", "--minutes", "1", "--seed", seed, "--json", "-o", report)
        for hash_seed, seed in (("1", "5"), ("2", "5"), ("1", "6"))
    ]
    assert [code for code, _ in said] == [0, 0, 0]
    first, again, other = (json.loads(out)["played"][0]["trace"] for _, out in said)
    assert first == again != other
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_an_incident_in_which_something_does_not_hold_says_so() -> None:
    recording = Recording("a playing")
    recording.sample(1.0, {"load": {"one": 1.0}})
    recording.require(False, "a collector fell")
    page = Report(SCENARIOS["july-31"], Options(), [recording]).html()
    assert "a collector fell" in page
    assert "All that must hold held" not in page


@pytest.mark.parametrize("wrong", [["nothing-of-the-kind"], ["leak", "--meters", "1"], ["leak", "-o", "/none/r.html"]])
def test_wrong_use_is_told(wrong: list[str]) -> None:
    assert played("1", *wrong)[0] == 2
