"""What `sapflow up` is asked over its own control plane: to drain a process, or to start it anew; both sides of it.

An answer comes when the work is done: a drain may take its whole deadline. Who asks and goes away changes nothing.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

from sapflow.cli.fleet_file import read_fleet
from sapflow.errors import SapflowError
from sapflow.monitor.control import Actions, seconds_in
from sapflow.runtime.supervisor import LATE_S, READY_TIMEOUT_S, Child, Supervisor

MARGIN_S = 5.0
_MEANS = {
    "balancer": "exporters and meters would wait at doors that nobody opens",
    "collector": "exporters and meters would find no collector, and wait",
    "phloem": "nothing would be stored, and nobody could read; exporters and meters would wait",
}


def fleet_actions(supervisor: Supervisor, token: str, drain_s: float) -> Actions:
    """POST /drain?name=…&within_s=…&force=1, POST /restart?name=…&within_s=…"""

    async def drain(query: dict[str, str]) -> dict[str, Any]:
        name = query.get("name", "")
        if "force" not in query:
            _check_others(supervisor.children, name)
        done = await supervisor.drain(name, seconds_in(query, drain_s))
        return {"name": name, "drained": True, "clean": done.clean, "seconds": done.seconds}

    async def restart(query: dict[str, str]) -> dict[str, Any]:
        name = query.get("name", "")
        done = await supervisor.restart(name, seconds_in(query, drain_s))
        said: dict[str, Any] = {"name": name, "restarted": True, "pid": supervisor.children[name].pid}
        return said | ({"clean": done.clean, "seconds": done.seconds} if done is not None else {"clean": True})

    return Actions(token, {"/drain": drain, "/restart": restart})


def _check_others(children: Mapping[str, Child], name: str) -> None:
    """Raises SapflowError when a child is the last of its role."""
    role = name.partition("-")[0]
    others = [one for one in children.values() if one.name != name and one.name.partition("-")[0] == role]
    if name in children and not any(one.state == "running" for one in others):
        raise SapflowError(
            f"{name} is the only {role} that runs: without it {_MEANS.get(role, 'the fleet would stand still')}. "
            f"'sapflow restart {name}' has it away for a moment only; to drain it all the same, say --force"
        )


def ask_fleet(data: str, action: str, name: str, within_s: float | None, *, force: bool = False) -> dict[str, Any]:
    """Have a running fleet drain or restart a process, and wait for it. Raises SapflowError."""
    fleet = read_fleet(data)
    query = {"name": name}
    if within_s is not None:
        query["within_s"] = str(within_s)
    if force:
        query["force"] = "1"
    try:
        token = (Path(data) / "fleet.token").read_text().strip()
    except OSError as error:
        raise SapflowError(f"the fleet's token in {data} cannot be read: {error.strerror}") from error
    if "fleet_control" not in fleet:
        raise SapflowError(
            f"the fleet in {data} runs a version that cannot be asked to {action} a process; stop it instead"
        )
    url = f"{fleet['fleet_control']}/{action}?{urlencode(query)}"
    request = urllib.request.Request(url, method="POST", headers={"authorization": f"Bearer {token}"})
    # What the fleet does may take a deadline that is not known here; that it is gone shows in its connection.
    timeout = None if within_s is None else within_s + LATE_S + READY_TIMEOUT_S + MARGIN_S
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except HTTPError as error:
        raise SapflowError(_said(error)) from error
    except (OSError, ValueError, HTTPException) as error:
        raise SapflowError(f"the fleet in {data} does not answer: {error}; 'sapflow status' says more") from error


def _said(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the fleet answers {error.code} {error.reason}"
