"""The names of a checkpoint's files that its writer, rexnet, and its readers without MindSpore have to agree on."""

from __future__ import annotations

STATE = "state.safetensors"  # parameters, optimiser, averages: what a resume needs
METRICS = "metrics.jsonl"  # the journal's points since the parent: part of the run's record
