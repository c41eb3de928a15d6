"""Faults on a node, and the canary that is there to be hit."""
