"""For users' programs, under asyncio and Trio alike.

async with sapflow.client.subscribe(url, org, token, at="earliest") as batches:
    async for batch in batches:
        for columns in batch.columns(): ...

A subscription is one connection. Its `position` is where to read on when that ends, so that nothing is missed or given
twice:

at = "earliest"
while True:
    try:
        async with sapflow.client.subscribe(url, org, token, at=at) as batches:
            at = batches.position
            async for batch in batches:
                ...
                at = batches.position
    except sapflow.errors.Unreachable:
        await anyio.sleep(random.uniform(0, 5))
"""

from sapflow.client.subscription import ConsumedBatch, Corrupt, Gap, Subscription, subscribe

__all__ = ["ConsumedBatch", "Corrupt", "Gap", "Subscription", "subscribe"]
