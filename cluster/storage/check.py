"""What the store doctor's checks have in common: a question to a store, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question to the store. `holds` is None where there is nothing to hold, but a figure."""

    name: str
    holds: bool | None
    seen: str
    meaning: str
