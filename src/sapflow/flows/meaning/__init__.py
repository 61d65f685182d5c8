"""What records mean, on request: stages between decoding and output.

`sampling` rates and scaled counters, `names` from options data, `view` one schema for all exporters (`schema` is its
table, `moments` its times), `typeinfo` elements as exporters describe them; `told` keeps what options data said.
"""
