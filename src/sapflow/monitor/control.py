"""The control plane of a process: its own listener, answering while the data plane is saturated.

GET /status   what the process knows of itself, as JSON
GET /metrics  the same figures for Prometheus
GET /health   204

A role may have more pages: each gives JSON about what its query names, `?of=…`. And it may have actions: a POST, whose
query says what, by who has the fleet's token (`authorization: Bearer …`).

POST /drain?within_s=…   the process is to end gently; answered at once
"""

from __future__ import annotations

import hmac
import json
import math
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs

import trio
from attrs import frozen
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sapflow.errors import SapflowError
from sapflow.runtime.addresses import join_address
from sapflow.runtime.drain import Drain
from sapflow.runtime.serve import listen

Status = Callable[[], dict[str, Any]]

_NAMES = {"lag_s": "lag_seconds", "cpu": "cpu_ratio", "oldest_s": "oldest_seconds"}
"""Figures whose names in a status are shorter than a metric's."""
_UNITS = ("bytes", "messages", "records", "batches", "entries", "items")
_IN_FLOW = {f"{unit}{way}" for unit in _UNITS for way in ("", "_in", "_out", "_back")}
"""What `flow` says already."""

GAUGES = {"links", "exporters", "open", "consumers", "subscribers", "streams", "orgs", "readers"}


class _Exporter:
    """Turns a status into metrics when asked.

    `flow` becomes `<place>_<in|out>_<bytes|messages|records|batches>_total`, what stands under `counts` counters of
    events, `gauges` gauges; `ratio` is what flows out for each byte in, and what that should be.
    """

    def __init__(self, role: str, status: Status) -> None:
        self._role = role
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        for place, ways in status.get("flow", {}).items():
            for way, figures in ways.items():
                for unit, value in figures.items():
                    yield self._counter(f"{place}_{way}_{unit}", f"{unit} {way} at {place}", value)
        for section, figures in status.get("counts", {}).items():
            for key, value in figures.items():
                if key in GAUGES:
                    yield self._gauge(f"{section}_{key}", f"{section}: {key}, now", value)
                elif key not in _IN_FLOW:
                    yield self._counter(f"{section}_{key}", f"{section}: {key.replace('_', ' ')}", value)
        for key, value in status.get("gauges", {}).items():
            if key == "cpu_seconds":
                yield self._counter(key, "CPU seconds used", value)
            else:
                name = _NAMES.get(key, key)
                yield self._gauge(name, name.replace("_", " "), value)
        for key, value in status.get("ratio", {}).items():
            if value is not None:
                yield self._gauge(f"out_in_ratio_{key}", f"bytes out for each byte in, {key}", value)

    def _counter(self, name: str, what: str, value: float) -> Metric:
        return CounterMetricFamily(f"sapflow_{self._role}_{name}", what, value=value)

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        return GaugeMetricFamily(f"sapflow_{self._role}_{name}", what, value=value)


@frozen
class Actions:
    """What may be asked of a process with a token: by path, called with the query's first value of each name.

    An action raises SapflowError when it cannot be done, which is told with code 409.
    """

    token: str
    by_path: Mapping[str, Callable[[dict[str, str]], Awaitable[dict[str, Any]]]]

    async def answer(self, scope: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """The code and what is said."""
        action = self.by_path.get(scope["path"])
        if action is None:
            return 404, {"error": f"there is no action {scope['path']}"}
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return 401, {"error": "the fleet's token is needed: fleet.token in its data directory"}
        query = parse_qs(scope["query_string"].decode("latin-1"))
        try:
            return 200, await action({name: values[0] for name, values in query.items()})
        except SapflowError as error:
            return 409, {"error": str(error)}


def seconds_in(query: Mapping[str, str], otherwise: float) -> float:
    """`within_s` of a query. Raises SapflowError when it is no time."""
    try:
        seconds = float(query.get("within_s", otherwise))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise SapflowError(f"within_s={query['within_s']} is no number of seconds")
    return seconds


def drain_action(drain: Drain, token: str, otherwise_s: float) -> Actions:
    """That a process may be drained."""

    async def ask(query: dict[str, str]) -> dict[str, Any]:
        drain.ask(seconds_in(query, otherwise_s))
        return {"draining": True, "deadline_s": round(drain.left_s, 3)}

    return Actions(token, {"/drain": ask})


async def serve_control(
    address: str,
    role: str,
    status: Status,
    *,
    pages: Mapping[str, Callable[[str], dict[str, Any]]] | None = None,
    actions: Actions | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `started` gives where it listens. Raises ConfigurationError when it cannot."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Exporter(role, status))

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (event := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{event['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            return
        code, kind, body = 404, b"text/plain", b"there are /status, /metrics and /health\n"
        if scope["method"] == "POST" and actions is not None:
            code, said = await actions.answer(scope)
            kind, body = b"application/json", json.dumps(said).encode()
        elif scope["path"] == "/status":
            code, kind, body = 200, b"application/json", json.dumps(status()).encode()
        elif scope["path"] == "/metrics":
            code, kind, body = 200, b"text/plain; version=0.0.4", generate_latest(registry)
        elif scope["path"] == "/health":
            code, body = 204, b""
        elif pages is not None and (page := pages.get(scope["path"])) is not None:
            (of, *_) = parse_qs(scope["query_string"].decode("latin-1")).get("of", [""])
            code, kind, body = 200, b"application/json", json.dumps(page(of)).encode()
        await send({"type": "http.response.start", "status": code, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    listener = await listen(address, what=f"the control plane of {role}", given="control")
    host, port = listener.socket.getsockname()[:2]
    duplicate = socket.socket(fileno=socket.dup(listener.socket.fileno()))
    await listener.aclose()
    config = HypercornConfig()
    config.bind = [f"fd://{duplicate.detach()}"]
    config.errorlog = None
    config.accesslog = None
    config.graceful_timeout = 0.5
    task_status.started(join_address(host, port))
    await serve(app, config, shutdown_trigger=trio.sleep_forever)  # type: ignore[arg-type]
