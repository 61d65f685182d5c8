"""The load generator as a command: what cannot be is refused, what goes wrong is one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tools.fleet import running


def loadgen(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.loadgen", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--meters", "-1"), "'--meters': -1 is not in the range"),
        (("--seconds", "nan"), "'--seconds': nan is not at least 0"),
        (("--rate", "0"), "'--rate': 0 is not more than 0"),
        (("--interval", "inf"), "'--interval': inf is not more than 0"),
        (("--rate", "1e9"), "at most 1000 records"),
        (("--meters", "0"), "nothing would be sent"),
    ],
)
def test_numbers_that_cannot_be_are_wrong_use(arguments: tuple[str, ...], said: str) -> None:
    found = loadgen(*arguments)
    assert found.returncode == 2
    assert said in found.stderr


def test_without_a_fleet_it_says_so_in_one_line(tmp_path: Path) -> None:
    found = loadgen("--data", str(tmp_path / "none"))
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert f"no fleet runs in {tmp_path}/none" in found.stderr


def test_its_report_is_for_people_or_as_json(tmp_path: Path) -> None:
    common = ["--data", str(tmp_path), "--meters", "3", "--exporters", "1", "--seconds", "1", "--interval", "0.2"]
    with running(tmp_path, collectors=1):
        told, parsed = loadgen(*common), loadgen(*common, "--json")
    assert told.returncode == parsed.returncode == 0, told.stderr + parsed.stderr
    report = json.loads(parsed.stdout)
    assert report["acknowledged_records"] == report["sent_records"] > 0
    assert "3 meters of 3 orgs" in told.stdout
    assert "until durable: p50" in told.stdout
