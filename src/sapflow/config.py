"""The configuration: every setting with its default and unit, the balancer's in `balancer_config.py`. `config_file.py`
reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import Factory, frozen

from sapflow.balancer_config import BalancerConfig, SourceConfig, TlsNameConfig

__all__ = [
    "BalancerConfig",
    "CollectorConfig",
    "Config",
    "ExitConfig",
    "FleetConfig",
    "IntakeConfig",
    "MeterConfig",
    "PegConfig",
    "PhloemConfig",
    "SourceConfig",
    "TlsNameConfig",
]


@frozen
class PegConfig:
    """An org's work is `member`'s, a Phloem node's, as long as that is there."""

    org: str
    member: str


@frozen
class FleetConfig:
    """What all processes of a fleet share."""

    coordinator: str = "local"
    """`local`: the balancer of this one host; `zookeeper`: an ensemble, for more than one."""
    coordinator_address: str = "127.0.0.1:4730"
    """Where the balancer's control plane serves membership; with `local` only."""
    zookeeper: str = "127.0.0.1:2181"
    """Its servers: HOST:PORT,HOST:PORT,…[/PATH]; the path must be there."""
    name: str = "sapflow"
    """Of several fleets that share a ZooKeeper."""
    session_timeout_s: float = 6.0
    """With `zookeeper`: a member that is silent for so long is no more; its claims are not acted on after 2/3 of it."""
    pegs: tuple[PegConfig, ...] = ()
    """Orgs whose work is one Phloem node's, as long as it is there: `{ org = "acme", member = "phloem-2" }`; of
    no effect with the embedded engine, which has one node."""
    report_interval_s: float = 1.0
    """How often every process reports its load and is told of the others."""
    lease_s: float = 3.0
    """A member that has not reported for so long is no more."""
    connect_timeout_s: float = 2.0
    """For every connection between processes."""
    move_cooldown_s: float = 300.0
    """A stream that was moved to another collector is not moved again before."""
    control: str = "127.0.0.1:0"
    """Where `sapflow up` is told to drain or restart a process, by who has the fleet's token."""
    drain_s: float = 30.0
    """A process that is drained has so long to hand on what it has, if nothing else is said."""
    sigterm_drain_s: float = 5.0
    """A process that gets SIGTERM hands on what it has within so long, and ends; with a second one it ends at once."""
    spare: bool = True
    """`sapflow up` keeps one process more, idle, that takes the place of one which dies: docs/how-to/restart.md."""


@frozen
class IntakeConfig:
    """How exporters' sessions become batches."""

    batch_bytes: int = 64 << 10
    """A batch is sent on when it has so many bytes …"""
    flush_interval_s: float = 1.0
    """… or when its first message has waited for so long."""
    message_timeout_s: float = 30.0
    """A message that has begun must be whole by then."""
    idle_timeout_s: float = 3600.0
    """An exporter that says nothing for so long is let go."""
    max_unacknowledged_bytes: int = 4 << 20
    """Of one stream: beyond it an exporter is not read from (TCP), or its datagrams are dropped and counted (UDP)."""
    max_udp_exporters: int = 10_000
    """UDP exporters known at a time; the one silent for longest goes first."""
    max_parked_bytes: int = 64 << 20
    """What came by UDP before its template, of all exporters together; one may hold 1 MiB of it."""
    template_lifetime_s: float = 5400.0
    """Templates of UDP exporters are believed for so long after a restart of ours."""


@frozen
class CollectorConfig:
    """Ends of links, and their budget."""

    link: str = "127.0.0.1:0"
    """Where links from meters, balancers and Phloem end."""
    live: str = "127.0.0.1:0"
    """The WebSocket door of live subscribers."""
    control: str = "127.0.0.1:0"
    """The control plane: /status, /metrics, /health."""
    budget_bytes: int = 256 << 20
    """Of batches that are not durable yet: credit is granted out of it."""
    org_share: float = 0.5
    """No org holds more than this share of the budget."""
    max_links: int = 10_000
    """Links at a time; the rest wait in the accept queue."""
    hello_timeout_s: float = 5.0
    """A link must have said who it is by then."""
    idle_timeout_s: float = 30.0
    """A link of which nothing is heard for so long is cut."""
    live_buffer_bytes: int = 4 << 20
    """Of each live subscriber; what does not fit is shed, counted and told."""
    options_bytes: int = 16 << 20
    """Of what all streams here tell in options data (sampling rates, names), for live subscribers; more is not kept."""
    max_live: int = 1000
    """Live subscribers at a time."""
    proxy_from: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Balancers that are believed when they say who is at the other end of a link that they relay, by a PROXY protocol
    v2 header. From elsewhere such a header is read over. No right hangs on it."""
    handoff: bool = True
    """Whether balancers on this host may give it sockets that they accepted; its own is in `handoff` of the data
    directory, which only its user may enter."""
    move_timeout_s: float = 10.0
    """A meter that is still here so long after it was asked to move ignored it …"""
    moves_ignored: int = 3
    """… and is left alone for an hour when it did so as often."""
    tls_certificate: str = ""
    """A PEM file; with it the link door also speaks TLS 1.3 (`links://`, `wss://`)."""
    tls_key: str = ""
    """A PEM file; empty when the key is in the certificate's file."""


@frozen
class ExitConfig:
    """An exit: an org's records into a topic of a Kafka of its own (docs/how-to/exit-to-kafka.md)."""

    name: str
    """Of the org's exits; its consumer group is `exit.NAME`. Another name is another exit, which begins anew."""
    org: str
    """Whose records are published."""
    brokers: str
    """Of the org's Kafka, some of them: HOST:PORT,HOST:PORT,…"""
    topic: str
    """It must be there, unless those brokers make topics by themselves."""
    format: Literal["jsonl", "arrow"] = "jsonl"
    """`jsonl`: a message for each record, an object as `tail` gives it; `arrow`: a message for some records of one
    template, an Arrow IPC stream."""
    fields: tuple[str, ...] = ()
    """Names of information elements, and of `_org`, `_exporter`, …; none: all that a record has."""
    at: Literal["earliest", "latest"] = "earliest"
    """Where one that is new begins in the org's log."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "lz4"
    """Of what is sent."""
    properties: dict[str, str] = Factory(dict)
    """librdkafka's for TLS and SASL, of those that the how-to lists: `{ "security.protocol" = "SASL_SSL" }`."""
    secrets: dict[str, str] = Factory(dict)
    """Files that hold one of them each, in clear: `{ "sasl.password" = "/etc/sapflow/acme.password" }`."""
    window_bytes: int = 4 << 20
    """Messages on their way, with what they cost beside their bytes; more wait in the log."""
    max_message_bytes: int = 1_000_000
    """A record that is larger as a message is left out, counted and told; not more than `max.message.bytes` of the
    topic, which is 1,048,588 by default."""
    timeout_s: float = 30.0
    """When Kafka has acknowledged nothing for so long, it is left, and tried again later."""
    backoff_most_s: float = 60.0
    """The longest wait, jittered, before it is tried again."""


@frozen
class PhloemConfig:
    """The messaging tier."""

    consume: str = "127.0.0.1:4741"
    """The consume door."""
    control: str = "127.0.0.1:0"
    """The control plane: /status, /metrics, /health."""
    budget_bytes: int = 256 << 20
    """Of batches on their way into the log: credit is granted out of it."""
    org_share: float = 0.5
    """No org holds more than this share of the budget."""
    commit_bytes: int = 1 << 20
    """About so much goes into one synced commit: more is a little faster, and others wait longer for the next."""
    backlog_rest: float = 0.0
    """0: an org's backlog is stored as fast as the log takes it. More: as long as there are orgs without a backlog, a
    commit takes less of one, and the log then rests from it for so many times as long as it made that commit take. With
    2 all backlogs together get about two thirds of the log, with 30, where others hardly notice them, a fifth: choose
    it so that this is more than orgs send day by day, or what has once collected only grows."""
    max_consumers: int = 1000
    """Consumers at a time."""
    hello_timeout_s: float = 5.0
    """A consumer must have said who it is by then."""
    idle_timeout_s: float = 30.0
    """A link or consumer of which nothing is heard for so long is cut."""
    max_groups_per_org: int = 100
    """Consumer groups of an org; one more is refused."""
    max_group_members: int = 16
    """Of one consumer group, the one that reads and those that stand by; one more is refused."""
    group_state_bytes: int = 32 << 10
    """What a consumer group may keep beside its position."""
    group_member_timeout_s: float = 300.0
    """A member that neither reads nor commits for so long is taken for hung, and the next takes over. One that dies is
    known at once, one whose host is gone within a minute."""
    group_idle_s: float = 30 * 86_400.0
    """A consumer group without a member is forgotten when nobody has read for it for so long."""
    retention_s: float = 7 * 86_400.0
    """Batches older than this are removed …"""
    retention_bytes_per_org: int = 10 << 30
    """… and the oldest of an org that holds more than this."""
    retention_interval_s: float = 10.0
    """How often that is looked at; what an org that stores holds too much goes as it stores."""
    ledger_streams_s: float = 86_400.0
    """A stream that was not heard of for so long has no row of its own in the ledger any more; its org's sum has it."""
    options_bytes_per_stream: int = 512 << 10
    """Of what an exporter tells in options data (sampling rates, names), for readers that begin behind it: the least
    recently told goes first, and is counted."""
    options_bytes_per_org: int = 16 << 20
    """Of all its streams'; those that were not heard of for longest go first, and are counted."""
    map_bytes: int = 64 << 30
    """The most that the log may grow to; the embedded engine's."""
    engine: Literal["embedded", "kafka"] = "embedded"
    """`embedded`: a log of its own, with one Phloem node; `kafka`: Apache Kafka's, with any number."""
    kafka: str = "127.0.0.1:9092"
    """Its brokers, some of them: HOST:PORT,HOST:PORT,…; all that follows is of the `kafka` engine too."""
    kafka_properties: dict[str, str] = Factory(dict)
    """librdkafka's properties for TLS and SASL, such as `{ "security.protocol" = "SSL" }`; keys that begin with
    `security.`, `ssl.` or `sasl.`."""
    kafka_topic_per_org: bool = False
    """A topic for each org, not one for all; not to be changed once there is a log."""
    kafka_partitions: int = 12
    """Of the one topic: an org is in one of them; not to be changed once there is a log."""
    kafka_copies: int = 3
    """Of each partition, for topics that are made here; fewer where there are fewer brokers."""
    kafka_commit_timeout_s: float = 30.0
    """When Kafka has stored nothing for so long, what it was given is sent again."""
    kafka_request_timeout_s: float = 5.0
    """For whatever else is asked of a broker."""
    kafka_news_interval_s: float = 0.25
    """How often it is asked for what other nodes stored, while a consumer waits for it."""
    kafka_ledger_interval_s: float = 30.0
    """How often what is stored is counted for the ledger, and written to `<fleet>--ledger`."""
    exits: tuple[ExitConfig, ...] = ()
    """Topics that orgs' records are published to: a table `[[phloem.exits]]` each."""


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
    """The org's token."""
    authority: str = ""
    """A PEM file with the certificate authorities to trust; empty: the system's."""
    certificate: str = ""
    """A PEM file with the client's certificate; empty: none."""
    certificate_key: str = ""
    """A PEM file; empty when the key is in the certificate's file."""
    ipfix_tcp: str = ""
    """IPFIX over TCP."""
    udp: str = ""
    """NetFlow v5 and v9, IPFIX and sFlow v5, whichever comes."""
    unix: str = ""
    """The path of a socket."""
    drop: str = ""
    """A directory for IPFIX Files."""
    sources: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Exporters from elsewhere are refused."""
    control: str = "127.0.0.1:0"
    """The control plane: /status, /metrics, /health."""
    spool: str = "sapflow-spool"
    """The directory of the spool."""
    spool_bytes: int = 1 << 30
    """The most that the spool may take on disk."""
    when_full: Literal["oldest", "newest"] = "oldest"
    """What of exporters over UDP is dropped."""
    window_bytes: int = 32 << 20
    """Batches in memory on their way."""
    pending_bytes: int = 16 << 20
    """Batches in memory that are not durable yet."""
    max_streams: int = 20_000
    """Streams that the spool holds at a time."""
    max_connections: int = 1000
    """Exporters' connections at a time."""
    max_udp_exporters: int = 10_000
    """UDP exporters known at a time; the one silent for longest goes first."""
    backoff_most_s: float = 30.0
    """The longest wait, jittered, before the fleet is tried again."""
    settle_s: float = 1.0
    """A file in `drop` is taken when it has not changed for so long."""


@frozen
class Config:
    """Everything; `data` is the directory that the fleet keeps its state in."""

    data: str = "sapflow-data"
    """The directory that the fleet keeps its state in."""
    collectors: int = 2
    """How many `sapflow up` starts."""
    phloems: int = 1
    """Phloem nodes that `sapflow up` starts; more than one with `phloem.engine = "kafka"` only. Each has a consume
    door; their ports follow one another."""
    elements: tuple[str, ...] = ()
    """CSV files of information elements of your own (docs/reference/elements.md), from the file's own directory."""
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
