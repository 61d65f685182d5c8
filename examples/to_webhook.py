"""An org's records to a service, as JSON lines by POST, at least once and each batch under a key of its own.

    python examples/to_webhook.py link://127.0.0.1:4741 acme acme.token http://127.0.0.1:8080/flows

A batch is committed when the service has answered 2xx. Killed between the two, it is sent again with the same
`Idempotency-Key`, by which the service knows it; so a batch counts once. While the service is away, it is waited for.
"""

import io
import sys
import urllib.request
from pathlib import Path

import anyio
import anyio.to_thread

from sapflow.client import ConsumedBatch, consume
from sapflow.flows.columns.records import Context
from sapflow.flows.formats.text import JsonLinesWriter

TIMEOUT_S = 10.0
WAIT_MOST_S = 30.0


async def main(url: str, org: str, token_file: str, hook: str) -> None:
    token = Path(token_file).read_text().strip()
    async with consume(url, org, token, group="webhook", on_missing=tell) as batches:
        async for batch in batches:  # committed when the next is asked for
            if batch.records:  # a batch may hold nothing but its exporter's account
                await deliver(hook, batch)


async def deliver(hook: str, batch: ConsumedBatch) -> None:
    """Send it until it is taken."""
    wait_s = 0.1
    while True:
        try:
            await anyio.to_thread.run_sync(post, hook, batch)
            return
        except OSError as error:  # of connecting, and any answer but 2xx
            print(f"{hook}: {error}; batch {batch.position} again in {wait_s:g} s", file=sys.stderr)
        await anyio.sleep(wait_s)
        wait_s = min(WAIT_MOST_S, wait_s * 2)


def post(hook: str, batch: ConsumedBatch) -> None:
    """Raises OSError when the service does not take it."""
    lines = io.BytesIO()
    JsonLinesWriter(lines).write(batch.payload, Context(batch.org, batch.exporter, batch.stream.hex(), batch.position))
    key = f"{batch.stream.hex()}-{batch.seq}"
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
    request = urllib.request.Request(hook, lines.getvalue(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        answer.read()


def tell(what: object) -> None:
    print(f"missing: {what}", file=sys.stderr)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:5])
