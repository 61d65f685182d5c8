"""How exporters' TLS is ended, and which org a name that they ask for stands for.

A name (SNI) is the client's word, and no secret: alone it lets nobody in. With it comes where its exporters are, or who
signs their certificates, or both. The name is looked at before the handshake, which then runs with that name's own
settings: OpenSSL does not take over who must show a certificate when the settings change in the midst of it.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from attrs import frozen

from sapflow.config import TlsNameConfig
from sapflow.errors import ConfigurationError
from sapflow.runtime.proxied import Networks
from sapflow.runtime.transport import server_tls


@frozen
class TlsName:
    """What a server name stands for."""

    org: str
    context: ssl.SSLContext
    sources: Networks
    """Where it is asked for from; empty: anywhere, with a certificate."""

    def admits(self, peer: str) -> bool:
        """Whether a peer, given as HOST:PORT, may ask for it."""
        return not self.sources or self.sources.hold(peer)


@frozen
class ExporterTls:
    """How a door ends exporters' TLS."""

    context: ssl.SSLContext
    handshake_timeout_s: float = 5.0
    names: tuple[tuple[str, TlsName], ...] = ()

    @classmethod
    def load(
        cls, certificate: str, key: str, handshake_timeout_s: float, names: Iterable[TlsNameConfig] = ()
    ) -> ExporterTls:
        """TLS as exporters speak it: many have no 1.3 yet. Raises ConfigurationError."""
        context = _context(certificate, key)
        named = tuple((one.name.lower(), _named(one, certificate, key)) for one in names)
        return cls(context, handshake_timeout_s, named)

    def of(self, name: str) -> TlsName | None:
        """What a name stands for, if it is one of those."""
        return dict(self.names).get(name.lower())


def _named(one: TlsNameConfig, certificate: str, key: str) -> TlsName:
    mine, its_key = (one.certificate, one.key) if one.certificate else (certificate, key)
    context = _context(mine, its_key)
    if one.authority:
        try:
            context.load_verify_locations(one.authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"certificate authority {one.authority}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return TlsName(one.org, context, Networks(one.sources))


def _context(certificate: str, key: str) -> ssl.SSLContext:
    return server_tls(certificate, key, minimum=ssl.TLSVersion.TLSv1_2)
