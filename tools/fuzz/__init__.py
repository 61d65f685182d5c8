"""Decoders fed with what no exporter should send: only their declared errors may get out."""
