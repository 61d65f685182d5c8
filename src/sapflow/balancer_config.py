"""The balancer's settings; `config.py` has all others."""

from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen
class SourceConfig:
    """Plain exporters from `prefix` belong to `org`."""

    prefix: str
    """Addresses of exporters, such as `192.0.2.0/24`; the longest prefix that fits counts."""
    org: str
    """Whose records theirs are."""


@frozen
class TlsNameConfig:
    """Exporters that ask for `name` when their TLS begins (SNI) belong to `org`; `sources`, `authority`, or both."""

    name: str
    """A host name, such as `acme.flows.example`."""
    org: str
    """Whose records theirs are."""
    sources: tuple[str, ...] = ()
    """Networks that it may be asked for from."""
    authority: str = ""
    """A PEM file: who asks for it must show a certificate that is signed by one of these."""
    certificate: str = ""
    """A PEM file of its own; empty: `balancer.tls_certificate`."""
    key: str = ""
    """A PEM file; empty when the key is in the certificate's file."""


@frozen
class BalancerConfig:
    """The front doors."""

    ipfix_tcp: str = "127.0.0.1:4739"
    """The exporter door: IPFIX over TCP."""
    exporters: Literal["intake", "carry"] = "intake"
    """`intake`: the balancer reads exporters' TCP sessions, which do not notice when a collector dies; `carry`: it
    gives their sockets to collectors on its host, which then read them, by the same `sources` and `tls_names`. That is
    less CPU here, and an exporter must connect again when its collector dies."""
    ipfix_tls: str = ""
    """Where exporters' TLS (1.2 or later) ends; nowhere while it is empty. IANA's port for it is 4740, which `link` has
    by default."""
    tls_certificate: str = ""
    """A PEM file, for `ipfix_tls`."""
    tls_key: str = ""
    """A PEM file; empty when the key is in the certificate's file."""
    tls_handshake_timeout_s: float = 5.0
    """An exporter's TLS must be agreed by then."""
    tls_names: tuple[TlsNameConfig, ...] = ()
    """Which org those belong to who ask for a name: a table `[[balancer.tls_names]]` each. Who asks for none of them
    goes by `sources`."""
    udp: str = "127.0.0.1:4739"
    """NetFlow v5 and v9, IPFIX and sFlow v5, whichever comes; nothing while it is empty."""
    udp_buffer_bytes: int = 32 << 20
    """What the kernel may hold of datagrams that were not read yet; less where net.core.rmem_max says so."""
    link: str = "127.0.0.1:4740"
    """The link door, for meters: plain, TLS or WebSocket, whichever comes."""
    control: str = "127.0.0.1:0"
    """The control plane: /status, /metrics, /health."""
    serves_coordinator: bool = True
    """Whether the `local` coordinator is this balancer's; of several that run side by side it is one's."""
    budget_bytes: int = 256 << 20
    """Of exporters' batches that are not durable yet; beyond it TCP is not read from, and datagrams are dropped."""
    org_share: float = 0.5
    """No org holds more than this share of the budget, or of the spool."""
    spool: bool = False
    """Whether what exporters sent is on disk before it goes on, and until it is durable in the log: in the data
    directory, under `spool/` and this balancer's name. It then outlives this process, and a loss of power."""
    spool_bytes: int = 1 << 30
    """The most that the spool may take on disk; when it is full TCP is not read from, and of datagrams …"""
    spool_when_full: Literal["oldest", "newest"] = "oldest"
    """… these are dropped and counted."""
    spool_streams: int = 20_000
    """Streams that the spool holds at a time."""
    max_connections: int = 5000
    """Connections at each door; the rest wait in the accept queue."""
    max_unplaced_links: int = 1000
    """Links that have not said, or not found, where they go; more are closed at once."""
    preamble_timeout_s: float = 5.0
    """A link must have said where it wants to go by then."""
    place_timeout_s: float = 10.0
    """A link that no collector can take by then is told to come back later (plain), or closed."""
    handoff: bool = True
    """Whether accepted links are given to collectors on this host with their socket; else all are relayed."""
    handoff_timeout_s: float = 1.0
    """A collector that has not taken a socket by then is relayed to."""
    links_per_s: float = 1000.0
    """Links admitted to one collector; what is over waits, up to `place_timeout_s`."""
    ramp_s: float = 10.0
    """A collector that is new, or was away, gets a part of the load that grows to the whole in so long."""
    idle_collector_s: float = 5.0
    """A collector that acknowledges nothing of what it has for so long, while others do, is left …"""
    idle_pause_s: float = 10.0
    """… for so long at first, and longer each time."""
    rebalance_start: float = 1.25
    """Streams are moved when the most loaded collector has more than so many times the mean …"""
    rebalance_stop: float = 1.1
    """… until it has less than this."""
    rebalance_settle_s: float = 4.0
    """What moves did is waited for so long, to be seen in reports, before more is decided."""
    rebalance_bytes_per_minute: int = 32 << 30
    """What the streams that are moved within a minute bring in a minute."""
    rebalance_least_bytes_per_s: int = 10_000
    """Nothing is moved while collectors have less than this on average."""
    moves_direct: bool = False
    """Whether meters reach collectors by their own addresses: a move then names it, else they come back to the door."""
    malformed_sessions: int = 3
    """So many of an exporter's TCP sessions in a row that end with a malformed message shut its address out for a
    time, which doubles with each more."""
    malformed_backoff_first_s: float = 1.0
    """For how long at first, about …"""
    malformed_backoff_most_s: float = 60.0
    """… and at most."""
    proxy_from: tuple[str, ...] = ()
    """Load balancers in front of the TCP doors, such as `10.0.0.0/28`: each of their connections begins with a PROXY
    protocol v2 header, which says who is at the other end. From elsewhere none is read."""
    sources: tuple[SourceConfig, ...] = (SourceConfig("127.0.0.0/8", "default"), SourceConfig("::1/128", "default"))
    """Which org plain exporters belong to; from elsewhere nothing is taken."""
