"""A job's checkpoints for people: which there are, whether they are whole, copies of them, and runs compared."""
