"""A whole fleet of real processes, for the tools and the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sapflow.cli.fleet_file import read_fleet, read_status
from sapflow.errors import SapflowError
from sapflow.orgs import OrgTable

READY_TIMEOUT_S = 90
STARTS = 3
"""A free port may be taken before it is listened on: then once more, with others."""


class Fleet:
    """A running `sapflow up`."""

    def __init__(self, data: Path, process: subprocess.Popen[bytes], ready: dict[str, Any]) -> None:
        self.data = data
        self.doors: dict[str, str] = ready["doors"]
        self.consume: list[str] = ready["consume"]
        """The consume door of each Phloem node."""
        self._process = process

    def processes(self) -> dict[str, int]:
        """Process ids by name, now."""
        found: dict[str, int] = read_fleet(str(self.data))["processes"]
        return found

    def status(self) -> dict[str, dict[str, Any]]:
        """Each process's status."""
        return read_status(read_fleet(str(self.data)))

    def kill(self, name: str) -> None:
        """kill -9; a process that is on its way back from the last time is waited for. Raises SapflowError."""
        until = time.monotonic() + READY_TIMEOUT_S
        while "error" in self.status()[name] and time.monotonic() < until:
            time.sleep(0.05)
        try:
            os.kill(self.processes()[name], signal.SIGKILL)
        except ProcessLookupError:
            raise SapflowError(f"{name} is not there to be killed; see {self.data}/up.log") from None

    def token(self, org: str) -> str:
        """A credential of an org, added when there is none."""
        table = OrgTable(self.data / "orgs.json")
        if org not in table.names():
            table.add(org)
        return table.issue_token(org)

    def fleet_token(self) -> str:
        """The fleet's own credential, which may read every org."""
        return (self.data / "fleet.token").read_text().strip()


@contextmanager
def running(data: Path, *, collectors: int = 2, config: Path | None = None) -> Iterator[Fleet]:
    """Start a fleet on free ports, and stop it at the end; its log is `up.log` in `data`."""
    data.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sapflow", "up", "--ephemeral", "--json", "--supervised"]
    command += ["--data", str(data), "--collectors", str(collectors)]
    if config is not None:
        command += ["--config", str(config)]
    with ExitStack() as stack:
        for left in reversed(range(STARTS)):
            try:
                fleet = stack.enter_context(_started(command, data))
                break
            except _PortTaken:
                if not left:
                    raise
        yield fleet


@contextmanager
def _started(command: list[str], data: Path) -> Iterator[Fleet]:
    with (data / "up.log").open("wb") as log, (data / "up.out").open("wb") as out:
        # A session of its own: Ctrl-C in a terminal is for the tool, which then stops the fleet when it is done. The
        # pipe is for the fleet to end when the tool is killed.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log, start_new_session=True)
        try:
            yield Fleet(data, process, _ready(process, data))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _PortTaken(SapflowError):
    """Somebody else took one of the free ports before it was listened on."""


def _ready(process: subprocess.Popen[bytes], data: Path) -> dict[str, Any]:
    until = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < until and process.poll() is None:
        lines = (data / "up.out").read_text().splitlines(keepends=True)
        if lines and lines[0].endswith("\n"):
            found: dict[str, Any] = json.loads(lines[0])
            return found
        time.sleep(0.05)
    told = (data / "up.log").read_text()[-4000:]
    kind = _PortTaken if "another process has it" in told else SapflowError
    raise kind(f"the fleet did not start:\n{told}")
