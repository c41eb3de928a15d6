"""Nouns and rules: what a job is, which states it may take, what a checkpoint manifest says.

Belongs here: frozen values and pure functions over them (spec, states and their one transition table, retry
budgets, the checkpoint chain, the contract between a training program and the control plane, the error tree).
Does not belong here: I/O of any kind, clocks, randomness, and any import of the other three packages.
"""
