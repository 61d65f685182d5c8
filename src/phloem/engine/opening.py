"""The engine that the configuration names."""

from __future__ import annotations

from phloem.engine.embedded import EmbeddedLog
from phloem.engine.engine import Engine
from phloem.engine.options import OptionsBounds
from phloem.engine.retaining import Retention
from sapflow.config import Config, PhloemConfig


def open_engine(config: Config, node: str) -> Engine:
    """It, for the node of that name, with what it needs for its upkeep. Raises EngineLocked, StorageError."""
    mine = config.phloem
    if mine.engine == "kafka":
        return _kafka(mine, config.fleet.name, node)
    log = EmbeddedLog.open(config.data_path / "log", map_bytes=mine.map_bytes)
    log.retention = Retention(mine.retention_s, mine.retention_bytes_per_org, mine.ledger_streams_s)
    log.options = _bounds(mine)
    return log


def _bounds(mine: PhloemConfig) -> OptionsBounds:
    return OptionsBounds(mine.options_bytes_per_stream, mine.options_bytes_per_org)


def _kafka(mine: PhloemConfig, fleet: str, node: str) -> Engine:
    # Only where it is used: librdkafka is a large library to load.
    from phloem.engine.kafka.log import KafkaLog
    from phloem.engine.kafka.settings import KafkaSettings

    return KafkaLog(
        KafkaSettings(
            servers=mine.kafka,
            fleet=fleet,
            node=node,
            properties=mine.kafka_properties,
            topic_per_org=mine.kafka_topic_per_org,
            partitions=mine.kafka_partitions,
            copies=mine.kafka_copies,
            retention_s=mine.retention_s,
            retention_bytes_per_org=mine.retention_bytes_per_org,
            ledger_streams_s=mine.ledger_streams_s,
            options=_bounds(mine),
            commit_timeout_s=mine.kafka_commit_timeout_s,
            request_timeout_s=mine.kafka_request_timeout_s,
        )
    )
