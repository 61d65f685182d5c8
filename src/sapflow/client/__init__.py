"""For users' programs, under asyncio and Trio alike.

async with sapflow.client.subscribe(url, org, token, at="earliest") as batches:
    async for batch in batches:
        for columns in batch.columns(): ...
"""

from sapflow.client.subscription import ConsumedBatch, Corrupt, Gap, Subscription, subscribe

__all__ = ["ConsumedBatch", "Corrupt", "Gap", "Subscription", "subscribe"]
