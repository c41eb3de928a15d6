"""Long seeded campaigns against the checkpoint chain; `make campaigns` runs them and writes docs/campaigns.md.

`tests/chaos/test_checkpoint_faults.py` runs a short piece of each. A case is a function of the store and a seed, so any
one can be run again alone.
"""
