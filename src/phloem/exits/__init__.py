"""An org's records into a Kafka of its own: what is read from its log as a consumer group is, and published."""
