"""Which peers there are, where each comes from, and where it is on this machine.

A program of a package counts as a peer of its own: tests ask for the one that they start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from attrs import frozen

from tools.peers import jars

BIN = jars.DIRECTORY / "bin"
"""Where Go modules and C programs are built to."""


@frozen
class Debian:
    """From a Debian package; installing needs root."""

    package: str


@frozen
class GoModule:
    """Built from a Go module into `.peers/bin`."""

    path: str


@frozen
class Jars:
    """From a pinned list of jars into `.peers/NAME-VERSION`, by Maven; running it needs Java 17 or later."""


@frozen
class Compiled:
    """Built by gcc from a C source beside this file, on a library from Debian, into `.peers/bin`."""

    library: str
    """As pkg-config calls it."""
    packages: tuple[str, ...]

    def path(self, name: str) -> Path:
        """The C source of a peer."""
        return Path(__file__).parent / f"{name}.c"

    def program(self, name: str) -> Path:
        """What is built of it; another source has another name, so that no stale program is ever found."""
        return BIN / f"{name}-{hashlib.sha256(self.path(name).read_bytes()).hexdigest()[:12]}"


@frozen
class Peer:
    """One program or server."""

    name: str
    source: Debian | GoModule | Jars | Compiled
    for_tests: bool = False
    """Whether tests need it; the others are for benchmarks and for looking at traffic."""


_ALL = (
    Peer("softflowd", Debian("softflowd"), for_tests=True),
    Peer("ipfixDump", Debian("libfixbuf-tools"), for_tests=True),
    Peer("nfdump", Debian("nfdump"), for_tests=True),
    Peer("nfcapd", Debian("nfdump"), for_tests=True),
    Peer("nfreplay", Debian("nfdump"), for_tests=True),
    Peer(
        "fixbuf_exporter",
        Compiled("libfixbuf", ("gcc", "libc6-dev", "pkg-config", "libfixbuf-dev")),
        for_tests=True,
    ),
    Peer("openssl", Debian("openssl"), for_tests=True),
    Peer("strace", Debian("strace"), for_tests=True),
    Peer("kafka", Jars(), for_tests=True),
    Peer("zookeeper", Jars(), for_tests=True),
    Peer("haproxy", Debian("haproxy")),
    Peer("pmacctd", Debian("pmacct"), for_tests=True),
    Peer("nfacctd", Debian("pmacct"), for_tests=True),
    Peer("fprobe", Debian("fprobe"), for_tests=True),
    Peer("tshark", Debian("tshark"), for_tests=True),
    Peer("tcpdump", Debian("tcpdump")),
    Peer("goflow2", GoModule("github.com/netsampler/goflow2/v2/cmd/goflow2@v2.2.6")),
)

PEERS = {peer.name: peer for peer in _ALL}
"""Every peer by its name."""


def find(name: str) -> str | None:
    """Where a peer is, if it is installed: its program, or the directory of its jars."""
    source = PEERS[name].source
    if isinstance(source, Jars):
        found = jars.installed(name)
        return None if found is None else str(found)
    if isinstance(source, Compiled):
        return shutil.which(str(source.program(name)))
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path)


def install_line(*names: str) -> str:
    """What to type to have these peers."""
    packages = [peer.source.package for peer in map(PEERS.__getitem__, names) if isinstance(peer.source, Debian)]
    by_hand = f"   (or: apt-get install {' '.join(dict.fromkeys(packages))})" if len(packages) == len(names) else ""
    return f"python -m tools.peers install {' '.join(names)}{by_hand}"
