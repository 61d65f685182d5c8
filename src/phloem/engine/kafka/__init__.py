"""The Kafka engine: Apache Kafka as the log, for more than one Phloem node."""
