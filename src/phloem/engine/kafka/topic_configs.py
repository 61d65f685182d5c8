"""How the fleet's topics are made; pure. Those that were there already are taken as they are."""

from __future__ import annotations

from phloem.engine.kafka.settings import MAX_ENTRY_BYTES, KafkaSettings

SEGMENTS = 8
"""A retention is divided into so many segments, the last of which is kept whole."""
LEAST_SEGMENT_MS = 60_000
GROUPS_SEGMENT_BYTES = 16 << 20
"""Of the groups' topic: what was forgotten of it goes in such pieces."""
COMPACTED_SEGMENT_BYTES = 8 << 20
"""Of the topics of ledgers and of options data: the piece that is written is not compacted, and whoever takes one up
reads all of it."""


def log_config(settings: KafkaSettings, copies: int) -> dict[str, str]:
    """Of a topic that holds orgs' entries."""
    retention_ms = int(settings.retention_s * 1000)
    config = {
        **_safe(copies),
        "retention.ms": str(retention_ms),
        "segment.ms": str(max(LEAST_SEGMENT_MS, retention_ms // SEGMENTS)),
        # By the broker's clock: an intake's, which may be wrong, would have entries refused, or kept for ever.
        "message.timestamp.type": "LogAppendTime",
    }
    if settings.topic_per_org:
        config["retention.bytes"] = str(settings.retention_bytes_per_org)
    return config


def groups_config(copies: int) -> dict[str, str]:
    """Of the groups' topic: shortened by whoever writes a snapshot, and by nothing else."""
    kept = {"retention.ms": "-1", "retention.bytes": "-1", "segment.bytes": str(GROUPS_SEGMENT_BYTES)}
    return {**_safe(copies), **kept}


def compacted_config(copies: int) -> dict[str, str]:
    """Of the topics of ledgers and of options data: the last record of each key is kept for ever."""
    kept = {"cleanup.policy": "compact", "segment.bytes": str(COMPACTED_SEGMENT_BYTES)}
    return {**_safe(copies), **kept, "min.cleanable.dirty.ratio": "0.3"}


def _safe(copies: int) -> dict[str, str]:
    return {
        "max.message.bytes": str(MAX_ENTRY_BYTES),
        "min.insync.replicas": str(max(1, copies - 1)),
        "unclean.leader.election.enable": "false",
        "cleanup.policy": "delete",
    }
