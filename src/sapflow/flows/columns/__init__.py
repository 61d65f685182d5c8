"""Data records as numpy columns, many sets at once.

`sets` finds where the data sets of each template are, `layouts` says how their records lie, `variable` has elements of
variable length, `batches` makes columns of them; `records` gives their values as text-like ones, `arrow` as Arrow.
"""
