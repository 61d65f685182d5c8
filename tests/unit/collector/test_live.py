"""Live subscribers: their own org's batches, and none held up for them."""

import json

import pytest
import trio
import trio_websocket
from trio.testing import memory_stream_pair

from collector.endpoints import Endpoint
from collector.live import LiveDoor, LiveSettings
from sapflow.flows.columns.batches import decode
from sapflow.flows.reference import reference_work
from sapflow.link import Batch, Connection, CreditPool, Side, StreamId
from sapflow.runtime.session import LinkSession
from tests.unit.flows.flows_made import messages, seen


def a_door(buffer_bytes: int = 1 << 20) -> tuple[LiveDoor, dict[str, Endpoint]]:
    pool = CreditPool(8 << 20)
    pool.used_bytes = 8 << 20
    endpoints: dict[str, Endpoint] = {}

    def endpoint(org: str) -> Endpoint:
        return endpoints.setdefault(org, Endpoint(org, pool, lambda: None))

    door = LiveDoor(LiveSettings(buffer_bytes=buffer_bytes), {"a-token": "acme", "g-token": "globex"}.get, endpoint)
    return door, endpoints


async def subscribed(nursery: trio.Nursery, door: LiveDoor, *tokens: str) -> trio_websocket.WebSocketConnection:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(door.serve, ours, "peer")
    headers = [(b"authorization", f"Bearer {token}".encode()) for token in tokens]
    return await trio_websocket.wrap_client_stream(nursery, theirs, "localhost", "/live", extra_headers=headers)


def publish(endpoint: Endpoint, seq: int, payload: bytes) -> None:
    stream, _ = memory_stream_pair()
    session = LinkSession(stream, Connection(Side.SERVER), peer="m", idle_timeout_s=30, max_unsent_bytes=1 << 20)
    state = endpoint.attach(StreamId(b"0123456789abcdef"), "192.0.2.1:9", (session, 1))
    endpoint.publish(state, Batch(seq, 1, 48, 7, payload))


async def test_a_subscriber_gets_its_own_orgs_batches() -> None:
    door, endpoints = a_door()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            acme = await subscribed(nursery, door, "a-token")
            globex = await subscribed(nursery, door, "g-token")
            while len(endpoints) < 2:
                await trio.sleep(0.01)
            publish(endpoints["acme"], 1, reference_work(2))
            message = await acme.get_message()
            assert isinstance(message, bytes)
            head, _, payload = message.partition(b"\n")
            assert payload == reference_work(2)
            assert json.loads(head)["records"] == 48
            with trio.move_on_after(0.2) as nothing:
                await globex.get_message()
            assert nothing.cancelled_caught
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tokens", [(), ("wrong",), ("a-token x",), ("a-token", "a-token"), ("a-token", "g-token")])
async def test_w09_without_its_one_credential_a_subscriber_is_answered_401(tokens: tuple[str, ...]) -> None:
    door, endpoints = a_door()

    async def attempt() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await subscribed(nursery, door, *tokens)

    rejected = pytest.RaisesExc(trio_websocket.ConnectionRejected, check=lambda error: error.status_code == 401)
    with pytest.RaisesGroup(rejected, flatten_subgroups=True):
        await attempt()
    assert not endpoints
    assert door.counts.unauthorized == 1


async def test_what_does_not_fit_is_shed_counted_and_told() -> None:
    door, endpoints = a_door(buffer_bytes=10_000)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            socket = await subscribed(nursery, door, "a-token")
            while "acme" not in endpoints:
                await trio.sleep(0.01)
            for seq in range(1, 11):
                publish(endpoints["acme"], seq, reference_work(2))
            assert door.counts.batches_shed == 7
            for _ in range(3):
                await socket.get_message()
            publish(endpoints["acme"], 11, reference_work(2))
            message = await socket.get_message()
            assert isinstance(message, bytes)
            assert json.loads(message.partition(b"\n")[0])["shed"] == 7
            nursery.cancel_scope.cancel()


async def test_a_subscriber_that_leaves_takes_its_subscription_with_it() -> None:
    door, endpoints = a_door()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            socket = await subscribed(nursery, door, "a-token")
            while not door.counts.subscribers:
                await trio.sleep(0.01)
            assert len(endpoints["acme"].live) == 1
            await socket.aclose()
            while door.counts.subscribers:
                await trio.sleep(0.01)
            assert endpoints["acme"].live == []
            nursery.cancel_scope.cancel()


async def test_w03_a_subscriber_that_says_empty_fragments_without_end_is_let_go() -> None:
    door, endpoints = a_door()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(door.serve, ours, "peer")
            headers = [(b"authorization", b"Bearer a-token")]
            await trio_websocket.wrap_client_stream(nursery, theirs, "localhost", "/live", extra_headers=headers)
            while not door.counts.subscribers:
                await trio.sleep(0.01)
            said = 0
            while door.counts.subscribers and said < 10 << 20:
                frames = (b"\x00" if said else b"\x02") + b"\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 200
                await theirs.send_all(frames)
                said += len(frames)
                await trio.testing.wait_all_tasks_blocked()
            assert said < 100_000
            assert endpoints["acme"].live == []
            nursery.cancel_scope.cancel()


async def test_a_subscriber_who_comes_in_the_middle_is_first_given_what_exporters_told() -> None:
    door, endpoints = a_door()
    told = messages({"samplerId": 1, "samplerRandomInterval": 100}, scopes=1, template=301)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            endpoint = door._endpoint("acme")
            publish(endpoint, 1, told)
            [state] = endpoint.streams.values()
            assert state.told.hears(told)
            assert not state.told.hears(told)
            socket = await subscribed(nursery, door, "a-token")
            head, _, payload = (await socket.get_message()).partition(b"\n")
            assert json.loads(head) == {"stream": state.id.hex(), "exporter": "192.0.2.1:9", "options": True}
            assert seen(decode(payload)) == seen(decode(told))
            publish(endpoints["acme"], 2, reference_work(2))
            head, _, payload = (await socket.get_message()).partition(b"\n")
            assert (json.loads(head)["seq"], payload) == (2, reference_work(2))
            nursery.cancel_scope.cancel()
