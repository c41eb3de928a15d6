"""The chain of checkpoints in an object store: starting, committing, reading, verifying, collecting."""
