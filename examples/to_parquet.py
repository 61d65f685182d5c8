"""An org's flows into Parquet files, each once, whatever is killed when.

    python examples/to_parquet.py link://127.0.0.1:4741 acme acme.token DIRECTORY

A file holds the flows of some batches, and its name their positions. It is written beside, synced, renamed, and then
the group's position is committed. Killed between the two, it is given those batches again, and passes over them.
"""

import os
import sys
from pathlib import Path

import anyio
import pyarrow
import pyarrow.parquet

from sapflow.client import ConsumedBatch, Member, consume
from sapflow.flows.columns.records import Context
from sapflow.flows.meaning.view import views

FILE_RECORDS = 500_000
"""A file is closed when it has so many …"""
FILE_S = 2.0
"""… or when its first has waited for so long."""


async def main(url: str, org: str, token_file: str, directory: str) -> None:
    token = Path(token_file).read_text().strip()
    sink = Path(directory)
    sink.mkdir(exist_ok=True)
    done = max((int(path.stem.split("-")[1]) for path in sink.glob("*.parquet")), default=0)
    async with consume(url, org, token, group="parquet", auto_commit=False, on_missing=tell) as batches:
        while True:
            if some := await gather(batches, done):
                write(sink, some)
                await batches.commit()


async def gather(batches: Member, done: int) -> list[ConsumedBatch]:
    """Batches for a file, behind those that are in one already."""
    some: list[ConsumedBatch] = []
    await batches.turn()  # a connection that is made anew takes the time it takes
    with anyio.move_on_after(FILE_S):  # what is cancelled while it waits has lost nothing
        async for batch in batches:
            if batch.position > done:
                some.append(batch)
            if sum(batch.records for batch in some) >= FILE_RECORDS:
                break
    return some


def write(sink: Path, some: list[ConsumedBatch]) -> None:
    """A file, which is there as a whole or not at all."""
    parts = []
    for batch in some:
        context = Context(batch.org, batch.exporter, batch.stream.hex(), batch.position)
        if columns := batch.columns():
            parts.append(pyarrow.Table.from_batches([views(columns).to_arrow(context)]))
    if not parts:  # a batch may hold nothing but its exporter's account
        return
    path = sink / f"{some[0].position:020}-{some[-1].position:020}.parquet"
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        pyarrow.parquet.write_table(pyarrow.concat_tables(parts, promote_options="permissive"), file)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    directory = os.open(sink, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def tell(what: object) -> None:
    print(f"missing: {what}", file=sys.stderr)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:5])
