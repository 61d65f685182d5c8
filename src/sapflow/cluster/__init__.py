"""The coordinator: who is there, with a lease, and what each last reported. Nothing in the data path waits for it."""
