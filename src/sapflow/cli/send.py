"""`sapflow send`: plays files into a door."""

from __future__ import annotations

import json
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import click
import trio
from attrs import define, frozen

from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings, UplinkStream
from sapflow.cli.inputs import Arrival, Decoder, arrivals, opened
from sapflow.cli.options import read_token
from sapflow.errors import ConfigurationError, MalformedMessage, Refused, SapflowError, Unreachable
from sapflow.flows.ipfix.framing import MessageFramer
from sapflow.flows.ipfix.session import Session
from sapflow.link.frames import Hint
from sapflow.runtime import websocket
from sapflow.runtime.addresses import join_address, split_address
from sapflow.runtime.dial import dial
from sapflow.runtime.transport import LinkUrl, client_tls, dial_link, link_url

DOORS = "ipfix+tcp://HOST:PORT, ipfix+tls://HOST:PORT, udp://HOST:PORT"
BATCH_BYTES = 64 << 10
SEND_TIMEOUT_S = 60.0
CONNECT_S = 5.0
LAST_WORD_S = 10.0
WELCOME_S = 10.0


@define
class Sent:
    """What was played; `batches` only over a link, where all of it is durable."""

    records: int = 0
    messages: int = 0
    bytes: int = 0
    batches: int = 0


@frozen
class Pace:
    """`speed` times as fast as it was captured; None: as fast as the other end takes it."""

    speed: float | None

    async def wait(self, arrival: Arrival, began: tuple[float, float]) -> None:
        """Until an arrival is due; `began` is when the play began, and the capture's first time."""
        if self.speed is not None and arrival.time_s is not None:
            await trio.sleep_until(began[0] + (arrival.time_s - began[1]) / self.speed)


class _Speed(click.ParamType[Pace]):
    name = "N|max"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Pace:
        if isinstance(value, Pace):
            return value
        if value == "max":
            return Pace(None)
        try:
            speed = float(str(value))
        except ValueError:
            speed = 0.0
        if speed <= 0:
            self.fail(f"'{value}' is no speed; write max, or a number above 0: 1 is as it was captured", param, ctx)
        return Pace(speed)


@click.command("send")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--to", "url", required=True, help=f"A door: {DOORS}, link://, links:// (TLS), ws:// or wss://.")
@click.option("--org", default="", help="The org, as a hint to the balancer; the token decides.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True), help="The org's token, for a link.")
@click.option("--ca", type=click.Path(path_type=Path, exists=True), help="Certificate authorities to trust (PEM).")
@click.option("--speed", type=_Speed(), default="max", show_default=True, help="For captures: 1 is as it was.")
@click.option("--loop", default=1, show_default=True, type=click.IntRange(1), help="Play the files so many times.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON object.")
def send_command(
    files: tuple[Path, ...],
    url: str,
    org: str,
    token_file: Path | None,
    ca: Path | None,
    speed: Pace,
    loop: int,
    as_json: bool,
) -> None:
    """Play IPFIX Files, captures or flow datagrams into a door. Over a link it ends when all is durable."""
    play = Play(files * loop, speed)
    scheme = url.partition("://")[0]
    tls = client_tls(str(ca) if ca else None) if scheme in ("ipfix+tls", "links", "wss") else None
    if scheme in ("ipfix+tcp", "ipfix+tls", "udp"):
        address = _address(url)
        sent = trio.run(_send_datagrams, play, address) if scheme == "udp" else trio.run(_send_tcp, play, address, tls)
    else:
        try:
            link = link_url(url)
        except ConfigurationError as error:
            raise click.UsageError(f"{error}, or {DOORS}") from error
        if token_file is None:
            raise click.UsageError("a link needs the org's token: --token-file FILE (see 'sapflow orgs token')")
        sent = trio.run(partial(_send_link, play, link, org, read_token(token_file), tls))
    result = {"records": sent.records, "messages": sent.messages, "bytes": sent.bytes}
    if sent.batches:
        result["batches"] = sent.batches
    click.echo(json.dumps(result) if as_json else ", ".join(f"{value:,} {key}" for key, value in result.items()))


def _address(url: str) -> str:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise click.UsageError(f"'{url}' is not a door; write {DOORS}")
    return join_address(host, port)


@frozen
class Play:
    """Files, one after the other, at a pace."""

    files: tuple[Path, ...]
    pace: Pace

    async def arrivals(self) -> AsyncGenerator[tuple[Path, Arrival], None]:
        """What exporters sent, when it is due. Raises SapflowError for a file that is none of flows."""
        for path in self.files:
            began: tuple[float, float] | None = None
            with opened(path) as file:
                try:
                    for arrival in arrivals(file, str(path), Counter()):
                        if began is None:
                            began = (trio.current_time(), arrival.time_s or 0.0)
                        await self.pace.wait(arrival, began)
                        yield path, arrival
                except MalformedMessage as fault:
                    raise SapflowError(f"{path}: {fault}; nothing from there on was sent") from fault

    async def drafts(self) -> AsyncGenerator[tuple[str, Draft], None]:
        """Self-contained batches by exporter. Raises SapflowError at what is malformed, after all before it."""
        decoder = Decoder(batch_bytes=BATCH_BYTES)
        async with aclosing(self.arrivals()) as found:
            async for _, arrival in found:
                for full in decoder.feed(arrival):
                    yield full
        for rest in decoder.flush():
            yield rest
        if decoder.faults:
            raise SapflowError("; ".join(decoder.faults))


async def _send_tcp(play: Play, address: str, tls: ssl.SSLContext | None) -> Sent:
    """A connection for each exporter."""
    sent = Sent()
    connections: dict[str, trio.abc.Stream] = {}
    async with AsyncExitStack() as stack, aclosing(play.drafts()) as drafts:
        async for exporter, draft in drafts:
            connection = connections.get(exporter)
            if connection is None:
                connection = connections[exporter] = await dial(address, timeout_s=CONNECT_S, tls=tls)
                stack.push_async_callback(trio.aclose_forcefully, connection)
            try:
                with trio.fail_after(SEND_TIMEOUT_S):
                    await connection.send_all(draft.payload)
            except trio.TooSlowError:
                raise _not_taken(address, f"nothing taken for {SEND_TIMEOUT_S:g} s", sent) from None
            except trio.BrokenResourceError as error:
                raise _not_taken(address, "it closed the connection", sent) from error
            sent.records += draft.records
            sent.messages += draft.messages
            sent.bytes += len(draft.payload)
        for connection in connections.values():
            try:
                await _until_read(connection)
            except trio.BrokenResourceError as error:
                raise _not_taken(address, "it cut the connection", sent) from error
    return sent


def _not_taken(address: str, what: str, sent: Sent) -> Unreachable:
    advice = "the door's log says why; a plain door does not acknowledge, so how much of it was read is in its counts"
    return Unreachable(f"{address}: {what}, after {sent.records:,} records were sent; {advice}")


async def _until_read(connection: trio.abc.Stream) -> None:
    """The door closes when it has read to the end."""
    with trio.move_on_after(LAST_WORD_S):
        if isinstance(connection, trio.SocketStream):
            await connection.send_eof()
            await connection.receive_some(1)
        else:
            await connection.aclose()


async def _send_datagrams(play: Play, address: str) -> Sent:
    """Datagrams as they were; messages of a transport session one in each."""
    host, port = split_address(address)
    sent = Sent()
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as socket:
        try:
            with trio.fail_after(CONNECT_S):
                await socket.connect((host, port))
        except trio.TooSlowError:
            raise Unreachable(f"udp://{address}: its name was not found within {CONNECT_S:g} s") from None
        except OSError as error:
            raise Unreachable(f"udp://{address} cannot be reached: {error.strerror}") from error
        framers: dict[str, MessageFramer] = {}
        sessions: dict[str, Session] = {}
        async with aclosing(play.arrivals()) as found:
            async for path, arrival in found:
                session = sessions.setdefault(arrival.exporter, Session())
                for datagram in _datagrams(arrival, framers):
                    await _send_datagram(socket, datagram, address, sent)
                    sent.messages += 1
                    sent.bytes += len(datagram)
                    if arrival.protocol == "ipfix":
                        sent.records += session.walk(datagram).records
                fault = framers[arrival.exporter].fault if arrival.exporter in framers else None
                if fault is not None:
                    raise SapflowError(f"{path}: {fault}; nothing from there on was sent")
    return sent


async def _send_datagram(socket: trio.socket.SocketType, datagram: bytes, address: str, sent: Sent) -> None:
    try:
        with trio.fail_after(SEND_TIMEOUT_S):
            await socket.send(datagram)
    except trio.TooSlowError:
        what = f"this host has sent nothing for {SEND_TIMEOUT_S:g} s, after {sent.messages:,} datagrams"
        raise Unreachable(f"udp://{address}: {what}; is its network up?") from None
    except OSError as error:
        what = f"udp://{address}: {error.strerror}, after {sent.messages:,} datagrams"
        raise SapflowError(f"{what}; is the door there, and does it speak UDP?") from error


def _datagrams(arrival: Arrival, framers: dict[str, MessageFramer]) -> Iterator[bytes]:
    if arrival.is_datagram:
        yield arrival.data
        return
    if arrival.begins or arrival.exporter not in framers:
        framers[arrival.exporter] = MessageFramer()
    whole = framers[arrival.exporter].feed(arrival.data)
    at = 0
    while at < len(whole):
        length = int.from_bytes(whole[at + 2 : at + 4], "big")
        yield whole[at : at + length]
        at += length


async def _send_link(play: Play, url: LinkUrl, org: str, token: str, tls: ssl.SSLContext | None) -> Sent:
    """A stream for each exporter, until all of it is durable."""
    path = f"{websocket.PATH}?{urlencode({'org': org, 'name': 'send'})}"

    async def dial_door(_: Target) -> trio.abc.Stream:
        try:
            return await dial_link(url, timeout_s=CONNECT_S, tls=tls, target=path)
        except Unreachable as error:
            if _is_of_tls(error):
                raise Refused(f"{url.scheme}://{error}; is it a door with TLS? --ca FILE says whom to trust") from error
            raise

    uplink = Uplink(
        FixedTarget(Target("the door", url.address)),
        dial_door,
        UplinkSettings(hello={"role": "meter", "token": token, "name": "send"}, hint=Hint(org=org, name="send")),
    )
    sent = Sent()
    streams: dict[str, UplinkStream] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(uplink.run)
        nursery.start_soon(_until_refused, uplink)
        nursery.start_soon(_until_welcomed, uplink, url)
        async with aclosing(play.drafts()) as drafts:
            async for exporter, draft in drafts:
                if exporter not in streams:
                    streams[exporter] = uplink.open_stream(org, exporter)
                await streams[exporter].put(draft)
                sent.messages += draft.messages
                sent.bytes += len(draft.payload)
        for stream in streams.values():
            await stream.drained()
            stream.end()
            sent.records += stream.records_acknowledged
            sent.batches += stream.batches_acknowledged
        nursery.cancel_scope.cancel()
    if refused := uplink.quarantined.records:
        raise SapflowError(f"{refused:,} records were refused by a collector and are not stored; {sent.records:,} are")
    return sent


def _is_of_tls(error: BaseException | None) -> bool:
    """Whether the two ends do not agree about TLS, or a certificate is not believed: another try would say the same."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, ssl.SSLEOFError)
        error = error.__cause__
    return False


async def _until_refused(uplink: Uplink) -> None:
    await uplink.was_refused.wait()
    raise Refused(str(uplink.refused))


async def _until_welcomed(uplink: Uplink, url: LinkUrl) -> None:
    """A door that is not there, or says nothing, is told as such; one that goes away later is waited for."""
    welcomed = trio.Event()
    uplink.on_welcomed = lambda *_: welcomed.set()
    with trio.move_on_after(WELCOME_S):
        await welcomed.wait()
        return
    reason = uplink.last_error or f"{url.address} does not answer"
    raise Unreachable(f"{url.scheme}://{url.address}: no link within {WELCOME_S:g} s: {reason}")
