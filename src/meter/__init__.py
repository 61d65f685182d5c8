"""Exporters' traffic into numbered batches, and those onto links: the edge agent, and the balancer's exporter door."""
