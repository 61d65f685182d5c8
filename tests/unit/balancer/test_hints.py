"""A link's first bytes, over any transport: what they hint at, and that nothing they hold can do harm."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.hints import MAX_HINT_BYTES, read_hint
from sapflow.errors import LinkError
from sapflow.link import LinkLimits
from sapflow.link.frames import Hint, encode_preamble

LIMITS = LinkLimits()


def a_client_hello(name: str | None) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def first_bytes_of(data: bytes) -> Hint | None:
    """What is found when they come one at a time."""
    for end in range(1, len(data)):
        assert read_hint(data[:end], LIMITS) is None, end
    return read_hint(data, LIMITS)


def test_the_preamble_of_a_link_is_its_hint() -> None:
    hint = Hint("acme", "m1", "c2")
    assert first_bytes_of(encode_preamble(hint)) == hint


def test_the_path_of_a_websocket_is_its_hint() -> None:
    line = b"GET /link?org=acme&name=m%201&want=c2 HTTP/1.1\r\n"
    assert first_bytes_of(line) == Hint("acme", "m 1", "c2")
    assert read_hint(b"GET /link HTTP/1.1\r\nHost: x\r\n", LIMITS) == Hint()
    assert read_hint(b"GET /?" + b"&".join([b"a=1"] * 99) + b" HTTP/1.1\r\n", LIMITS) == Hint()


@pytest.mark.parametrize(
    ("name", "org"), [("acme.links.example", "acme"), ("links.example", ""), (None, ""), ("127.0.0.1", "")]
)
def test_the_server_name_of_a_client_hello_is_its_hint(name: str | None, org: str) -> None:
    hello = a_client_hello(name)
    assert read_hint(hello[:100], LIMITS) is None
    assert read_hint(hello, LIMITS) == Hint(org=org)


def test_a_request_line_without_end_and_what_is_no_link_are_refused() -> None:
    with pytest.raises(LinkError, match="without end"):
        read_hint(b"GET /" + b"a" * MAX_HINT_BYTES, LIMITS)
    with pytest.raises(LinkError):
        read_hint(b"POST / HTTP/1.1\r\n", LIMITS)


@given(
    st.binary(min_size=1, max_size=400), st.sampled_from([b"", b"\x16", b"\x16\x03\x01\x00\x30\x01", b"GET ", b"SAPL"])
)
def test_any_bytes_give_a_hint_or_a_link_error(data: bytes, head: bytes) -> None:
    try:
        hint = read_hint(head + data, LIMITS)
    except LinkError:
        return
    assert hint is None or isinstance(hint, Hint)


@given(st.data())
def test_a_damaged_client_hello_is_placed_all_the_same(data: st.DataObject) -> None:
    hello = bytearray(a_client_hello("acme.links.example"))
    for _ in range(data.draw(st.integers(1, 8))):
        hello[data.draw(st.integers(5, len(hello) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read_hint(bytes(hello), LIMITS), Hint)
