"""Faults on purpose, against a real cluster with a canary job, and an oracle that judges what became of it.

plan.py: which faults, when, on what (pure) · strikes.py: doing them · oracle.py: the verdict (pure) · campaign.py: one
job for each fault, from submit to verdict · report.py: the page and its timeline.
"""
