"""The agent ends what its supervisor should have ended, once the lease is over and not before."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from cluster.lease import MARGIN_S
from cluster.node.overdue import LATE_S, end_overdue


@dataclass
class Node:
    """A node whose clock goes on while its agent sleeps."""

    until: float | None
    renewed_at: float = float("inf")
    ends_at: float = float("inf")  # the supervisor by itself
    now: float = 0.0
    swept: list[float] = field(default_factory=list)
    sweeps_needed: int = 1

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000.0, "nobody ended it"
        if self.now >= self.renewed_at:
            self.until, self.renewed_at = 20.0, float("inf")

    def watch(self) -> list[float]:
        def ended() -> bool:
            return len(self.swept) >= self.sweeps_needed or self.now >= self.ends_at

        end_overdue(
            lambda: self.until, ended, lambda: self.swept.append(self.now), clock=lambda: self.now, sleep=self.sleep
        )
        return self.swept


def test_stopped_supervisor_is_ended_before_the_control_plane_calls_the_lease_over() -> None:
    (at,) = Node(until=10.0).watch()
    assert 10.0 + LATE_S < at < 10.0 + MARGIN_S - 1.0


def test_supervisor_that_ends_in_time_is_left_alone() -> None:
    assert Node(until=10.0, ends_at=10.5).watch() == []


@pytest.mark.parametrize("until", [None, 10.0])
def test_lease_that_is_renewed_counts_from_then(until: float | None) -> None:
    (at,) = Node(until=until, renewed_at=9.0).watch()
    assert at > 20.0 + LATE_S


def test_what_is_started_after_the_sweep_is_swept_too() -> None:
    assert len(Node(until=10.0, sweeps_needed=3).watch()) == 3
