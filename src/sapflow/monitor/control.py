"""The control plane of a process: its own listener, answering while the data plane is saturated.

GET /status   what the process knows of itself, as JSON
GET /metrics  the same figures for Prometheus
GET /health   204

A role may have more pages: each gives JSON about what its query names, `?of=…`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sapflow.runtime.addresses import join_address
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


async def serve_control(
    address: str,
    role: str,
    status: Status,
    *,
    pages: Mapping[str, Callable[[str], dict[str, Any]]] | None = None,
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
        if scope["path"] == "/status":
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

    listener = await listen(address, what=f"the control plane of {role}")
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
