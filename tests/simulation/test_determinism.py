"""The same seed does the same, to the byte, in any process."""

import os
import subprocess
import sys

from tools.simulate import Scenario, simulate

SAY = """
from tools.simulate import Scenario, simulate
for seed in (1, 2, 3):
    outcome = simulate(Scenario.drawn(seed))
    print(outcome.checksum, outcome.notes, outcome.virtual_s)
"""


def said(hash_seed: str) -> str:
    """What a process of its own says of three seeds; its sets of texts are in an order of their own."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_seed_gives_the_same_trace_whichever_process_runs_it() -> None:
    one, other = said("1"), said("2")
    assert one == other


def test_the_same_seed_gives_the_same_trace_twice_and_another_gives_another() -> None:
    first, again, other = (simulate(Scenario.drawn(seed)) for seed in (11, 11, 12))
    assert first.lines == again.lines
    assert (first.checksum, first.notes) == (again.checksum, again.notes)
    assert first.checksum != other.checksum
