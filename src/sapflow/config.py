"""The configuration: every setting with its default and unit, read from one TOML file (see `sapflow config show`)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import attrs
import cattrs
from attrs import Factory, frozen
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError

from sapflow.errors import ConfigurationError


@frozen
class FleetConfig:
    """What all processes of a fleet share."""

    coordinator: str = "127.0.0.1:4730"
    """Where the balancer's control plane serves membership."""
    report_interval_s: float = 1.0
    lease_s: float = 3.0
    connect_timeout_s: float = 2.0


@frozen
class SourceConfig:
    """Plain exporters from `prefix` belong to `org`."""

    prefix: str
    org: str


@frozen
class BalancerConfig:
    """The front doors."""

    ipfix_tcp: str = "127.0.0.1:4739"
    udp: str = "127.0.0.1:4739"
    """NetFlow v5 and v9, IPFIX and sFlow v5, whichever comes."""
    link: str = "127.0.0.1:4740"
    control: str = "127.0.0.1:0"
    max_connections: int = 5000
    preamble_timeout_s: float = 5.0
    place_timeout_s: float = 10.0
    sources: tuple[SourceConfig, ...] = (SourceConfig("127.0.0.0/8", "default"), SourceConfig("::1/128", "default"))


@frozen
class IntakeConfig:
    """How exporters' sessions become batches."""

    batch_bytes: int = 64 << 10
    flush_interval_s: float = 1.0
    message_timeout_s: float = 30.0
    idle_timeout_s: float = 3600.0
    max_unacknowledged_bytes: int = 4 << 20
    max_udp_exporters: int = 10_000
    template_lifetime_s: float = 5400.0
    """Templates of UDP exporters are believed for so long after a restart of ours."""


@frozen
class CollectorConfig:
    """Ends of links, and their budget."""

    link: str = "127.0.0.1:0"
    live: str = "127.0.0.1:0"
    control: str = "127.0.0.1:0"
    budget_bytes: int = 256 << 20
    org_share: float = 0.5
    max_links: int = 10_000
    hello_timeout_s: float = 5.0
    idle_timeout_s: float = 30.0
    live_buffer_bytes: int = 4 << 20
    max_live: int = 1000
    tls_certificate: str = ""
    """A PEM file; with it the link door also speaks TLS 1.3 (`links://`, `wss://`)."""
    tls_key: str = ""
    """A PEM file; empty when the key is in the certificate's file."""


@frozen
class PhloemConfig:
    """The messaging tier."""

    consume: str = "127.0.0.1:4741"
    control: str = "127.0.0.1:0"
    budget_bytes: int = 256 << 20
    org_share: float = 0.5
    commit_bytes: int = 4 << 20
    max_consumers: int = 1000
    hello_timeout_s: float = 5.0
    idle_timeout_s: float = 30.0
    retention_s: float = 7 * 86_400.0
    retention_bytes_per_org: int = 10 << 30
    retention_interval_s: float = 10.0
    map_bytes: int = 64 << 30


@frozen
class MeterConfig:
    """The agent on a customer's host. A door that is empty is not opened."""

    to: str = "link://127.0.0.1:4740"
    """link://, links:// (TLS), ws:// or wss://."""
    org: str = ""
    """A hint to the balancer; the token decides."""
    name: str = ""
    """Empty: the host's name."""
    token_file: str = ""
    authority: str = ""
    """A PEM file with the certificate authorities to trust; empty: the system's."""
    certificate: str = ""
    """A PEM file with the client's certificate; empty: none."""
    certificate_key: str = ""
    ipfix_tcp: str = ""
    udp: str = ""
    unix: str = ""
    """The path of a socket."""
    drop: str = ""
    """A directory for IPFIX Files."""
    sources: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Exporters from elsewhere are refused."""
    control: str = "127.0.0.1:0"
    spool: str = "sapflow-spool"
    spool_bytes: int = 1 << 30
    when_full: Literal["oldest", "newest"] = "oldest"
    """What of exporters over UDP is dropped."""
    window_bytes: int = 32 << 20
    """Batches in memory on their way."""
    pending_bytes: int = 16 << 20
    """Batches in memory that are not durable yet."""
    max_streams: int = 20_000
    max_connections: int = 1000
    max_udp_exporters: int = 10_000
    backoff_most_s: float = 30.0
    settle_s: float = 1.0
    """A file in `drop` is taken when it has not changed for so long."""


@frozen
class Config:
    """Everything; `data` is the directory that the fleet keeps its state in."""

    data: str = "sapflow-data"
    collectors: int = 2
    fleet: FleetConfig = Factory(FleetConfig)
    balancer: BalancerConfig = Factory(BalancerConfig)
    intake: IntakeConfig = Factory(IntakeConfig)
    collector: CollectorConfig = Factory(CollectorConfig)
    phloem: PhloemConfig = Factory(PhloemConfig)
    meter: MeterConfig = Factory(MeterConfig)

    @property
    def data_path(self) -> Path:
        """The data directory."""
        return Path(self.data)


_converter = cattrs.Converter(forbid_extra_keys=True)


def _strictly(value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words = {int: "an integer", float: "a number", str: "a text in quotes", bool: "true or false"}
        raise ValueError(f"expected {words[kind]}, got {value!r}")
    return value


for _kind in (int, float, str, bool):
    _converter.register_structure_hook(_kind, _strictly)


def load(path: Path | None) -> Config:
    """The configuration of a file over the defaults. Raises ConfigurationError that names the file and the key."""
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            return from_dict(tomllib.load(file), str(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error


def from_dict(data: dict[str, Any], where: str) -> Config:
    """As `load`, from what a TOML parser gave."""
    try:
        config = _converter.structure(data, Config)
    except ClassValidationError as group:
        raise ConfigurationError("; ".join(f"{where}: {line}" for line in _explain(group, Config))) from group
    _check(config, where)
    return config


def _check(config: Config, where: str) -> None:
    for key, value, _default in describe(config):
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise ConfigurationError(f"{where}: {key}: must be more than 0, is {value}")
    for key, share in (("collector", config.collector.org_share), ("phloem", config.phloem.org_share)):
        if share > 1:
            raise ConfigurationError(f"{where}: {key}.org_share: at most 1, is {share}")
    for section, budget in (("collector", config.collector.budget_bytes), ("phloem", config.phloem.budget_bytes)):
        if budget < 8 << 20:
            raise ConfigurationError(f"{where}: {section}.budget_bytes: at least {8 << 20:,}, is {budget:,}")

    if config.meter.spool_bytes < 8 << 20:
        raise ConfigurationError(f"{where}: meter.spool_bytes: at least {8 << 20:,}, is {config.meter.spool_bytes:,}")


def _explain(group: ClassValidationError, cls: type, prefix: str = "") -> Iterator[str]:
    for error in group.exceptions:
        notes = [note for note in getattr(error, "__notes__", []) if hasattr(note, "name")]
        key = prefix + (notes[0].name if notes else "")
        if isinstance(error, ForbiddenExtraKeysError):
            known = [field.name for field in attrs.fields(error.cl)]
            for extra in sorted(error.extra_fields):
                near = get_close_matches(extra, known, 1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; known here: {', '.join(known)}"
                yield f"{prefix}{extra}: no such setting{hint}"
        elif isinstance(error, ClassValidationError):
            yield from _explain(error, cls, f"{key}.")
        elif isinstance(error, BaseExceptionGroup):
            yield f"{key}: {error.exceptions[0]}"
        else:
            yield f"{key}: {error}"


def describe(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Every setting: its key, its value, its default."""
    yield from _describe(config, Config(), "")


def _describe(value: Any, default: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for field in attrs.fields(type(value)):
        mine, theirs = getattr(value, field.name), getattr(default, field.name)
        if attrs.has(type(mine)):
            yield from _describe(mine, theirs, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", mine, theirs


def dumps(config: Config) -> str:
    """The configuration as TOML, every setting written out."""
    lines: list[str] = []
    tables: list[str] = []
    for field in attrs.fields(Config):
        value = getattr(config, field.name)
        if attrs.has(type(value)):
            tables += ["", f"[{field.name}]"]
            tables += [f"{inner.name} = {_toml(getattr(value, inner.name))}" for inner in attrs.fields(type(value))]
        else:
            lines.append(f"{field.name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if attrs.has(type(value)):
        inner = ", ".join(f"{field.name} = {_toml(getattr(value, field.name))}" for field in attrs.fields(type(value)))
        return f"{{ {inner} }}"
    return "[" + ", ".join(_toml(item) for item in value) + "]"
