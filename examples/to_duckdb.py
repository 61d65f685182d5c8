"""An org's flows into a DuckDB table, each once, whatever is killed when.

    python examples/to_duckdb.py link://127.0.0.1:4741 acme acme.token flows.duckdb

The rows of a batch and its position are one transaction, and then the group's position is committed. Killed between
the two, it is given that batch again, and passes over it. Needs the package `duckdb`.
"""

import sys
from pathlib import Path

import anyio
import duckdb
import pyarrow

from sapflow.client import ConsumedBatch, consume
from sapflow.flows.columns.records import Context
from sapflow.flows.meaning.view import views


async def main(url: str, org: str, token_file: str, database: str) -> None:
    token = Path(token_file).read_text().strip()
    with duckdb.connect(database) as sink:
        sink.execute("create table if not exists done (position ubigint)")
        done = sink.execute("select coalesce(max(position), 0) from done").fetchall()[0][0]
        async with consume(url, org, token, group="duckdb", auto_commit=False, on_missing=tell) as batches:
            async for batch in batches:
                if batch.position > done:
                    store(sink, batch)
                await batches.commit()


def store(sink: duckdb.DuckDBPyConnection, batch: ConsumedBatch) -> None:
    """The batch's flows under common names, with where they stand in the log."""
    context = Context(batch.org, batch.exporter, batch.stream.hex(), batch.position)
    columns = batch.columns()
    parts = [views(columns).to_arrow(context)] if columns else []
    sink.begin()
    for part in parts:
        rows = pyarrow.Table.from_batches([part])
        sink.register("rows", rows)
        sink.execute("create table if not exists flows as select * from rows limit 0")
        sink.execute("insert into flows by name select * from rows")
        sink.unregister("rows")
    sink.execute("delete from done")
    sink.execute("insert into done values (?)", [batch.position])
    sink.commit()


def tell(what: object) -> None:
    print(f"missing: {what}", file=sys.stderr)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:5])
