"""Phloem, the messaging tier: subscribes to collectors' endpoints, commits batches durably, serves consumers."""
