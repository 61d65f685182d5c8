"""For users' programs, under asyncio and Trio alike.

async with sapflow.client.consume(url, org, token, group="billing") as batches:
    async for batch in batches:
        for columns in batch.columns(): ...

A consumer group is read from where it has come to; several programs of one group take over from one another. Without a
group a subscription is one connection, whose `position` is where to read on when that ends:

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

from sapflow.client.groups import Extent, GroupFigures, list_groups, remove_group, reset_group
from sapflow.client.member import Member, consume
from sapflow.client.missing import Ahead, Corrupt, Gap, Missing, RecordsMissing
from sapflow.client.subscription import ConsumedBatch, OptionsData, Subscription, subscribe

__all__ = [
    "Ahead",
    "ConsumedBatch",
    "Corrupt",
    "Extent",
    "Gap",
    "GroupFigures",
    "Member",
    "Missing",
    "OptionsData",
    "RecordsMissing",
    "Subscription",
    "consume",
    "list_groups",
    "remove_group",
    "reset_group",
    "subscribe",
]
