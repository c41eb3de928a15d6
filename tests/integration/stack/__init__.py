"""What needs a stack on this machine: one is brought up for all of it."""
