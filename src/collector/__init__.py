"""The collector: ends links, checks the org, validates, and publishes each org's batches to its subscribers."""
