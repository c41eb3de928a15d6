"""The control loop: what it sees, decides, commits and does, and the proofs that it waits for."""
