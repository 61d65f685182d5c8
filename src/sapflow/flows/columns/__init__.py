"""Data records as numpy columns, many sets at once.

`sets` finds where the data sets of like templates are, `layouts` says how their records lie; `typed` makes fields of
fixed length into columns, `variable` those of variable length, `batches` all of them; `records` gives their values as
text-like ones, `arrow` as Arrow.
"""
