"""What a running fleet says of itself in its data directory: for `status`, `tail` and the tools on the same host."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import trio

from sapflow.errors import SapflowError

FLEET_FILE = "fleet.json"
RETRY_S = 1.0


class FleetFile:
    """Written again after each change, by a task of its own: a full disk is told, and ends nothing."""

    def __init__(self, data: Path, content: Callable[[], dict[str, Any]], event: Callable[[dict[str, Any]], None]):
        self._path = data / FLEET_FILE
        self._content = content
        self._event = event
        self._changed = trio.Event()

    def changed(self) -> None:
        """What the file says is not so any more."""
        self._changed.set()

    def write_first(self) -> None:
        """Write it before the fleet is ready. Raises SapflowError."""
        try:
            self._write()
        except OSError as error:
            raise SapflowError(f"{self._path} cannot be written: {error.strerror}; free space there") from error

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({**self._content(), "up": os.getpid()}))
        new.replace(self._path)

    def remove(self) -> None:
        """The fleet has stopped."""
        self._path.unlink(missing_ok=True)

    async def run(self) -> None:
        """Write it after each change, until cancelled; while it cannot be written, try again each second."""
        failing = False
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            try:
                self._write()
                failing = False
            except OSError as error:
                self._changed.set()
                if not failing:
                    self._event(
                        {
                            "event": "fleet file not written",
                            "file": str(self._path),
                            "reason": error.strerror,
                            "meaning": "the fleet works; 'status' may show process ids of before",
                            "retry_s": RETRY_S,
                        }
                    )
                failing = True
                await trio.sleep(RETRY_S)


def read_fleet(data: str) -> dict[str, Any]:
    """What a running fleet wrote of itself. Raises SapflowError when none runs."""
    advice = f"start one with 'sapflow up --data {data}', or name its directory with --data"
    try:
        found = json.loads((Path(data) / FLEET_FILE).read_text())
    except FileNotFoundError:
        raise SapflowError(f"no fleet runs in {data}; {advice}") from None
    except (OSError, ValueError) as error:
        raise SapflowError(f"no fleet found in {data}: {error}; {advice}") from error
    if not isinstance(found, dict) or not found.keys() >= {"up", "doors", "control"}:
        raise SapflowError(f"no fleet found in {data}: its {FLEET_FILE} is of another version, or broken; {advice}")
    if not Path(f"/proc/{found['up']}").exists():
        raise SapflowError(f"no fleet runs in {data}: 'sapflow up' (pid {found['up']}) was killed; {advice}")
    return found


def read_status(fleet: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each process's status; {"error": …} for one that does not answer within 2 s."""
    statuses: dict[str, dict[str, Any]] = {}
    for name, url in fleet["control"].items():
        try:
            with urllib.request.urlopen(url, timeout=2.0) as answer:
                statuses[name] = json.load(answer)
        except (OSError, ValueError, HTTPException) as error:
            statuses[name] = {"error": str(error)}
    return statuses


def read_why(fleet: dict[str, Any], stream: str) -> dict[str, dict[str, Any]]:
    """What each balancer says of why a stream is where it is; {"error": …} for one that does not answer within 2 s."""
    query = f"/why?{urlencode({'of': stream})}"
    urls = {
        name: url.removesuffix("/status") + query
        for name, url in fleet["control"].items()
        if name.startswith("balancer")
    }
    return read_status({"control": urls})
