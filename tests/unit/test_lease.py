"""The lease: in no order of an agent's and a control plane's steps is a node called lost that may still work."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import product

import pytest

from cluster.lease import MARGIN_S, RENEWALS_PER_LEASE, Lease, Watch
from tests.support.leases import Register

KEY = ("job", 1, 0)
LEASE_S = 10.0


def agent(register: Register, clock: list[float], granted: list[float]) -> Generator[None, None, None]:
    """An agent's renewal, one request at a time; between any two it may be held up for as long as you like.

    The steps are those of `Lease.renew`, which a test below holds against this transcript.
    """
    count = register.counts.get(KEY, 0)
    while True:
        taken = clock[0]
        yield
        count += 1
        register.renew(KEY, count)
        yield
        if register.is_revoked(*KEY[:2]):
            return
        granted.append(taken + LEASE_S)
        yield


def orders(length: int) -> Iterator[tuple[str, ...]]:
    """Every sequence of: the agent's next request, the control plane's next look, time passing."""
    return product(("agent", "look", "time"), repeat=length)


def test_no_order_of_steps_calls_a_node_lost_whose_lease_still_runs() -> None:
    lost = 0
    for order in orders(9):
        register, clock, granted = Register(), [0.0], [LEASE_S]
        register.renew(KEY, 1)  # the first renewal is through
        steps = agent(register, clock, granted)
        watch = Watch(register, lambda clock=clock: clock[0])  # type: ignore[misc]
        called_lost = False
        for step in order:
            if step == "agent":
                before = len(granted)
                next(steps, None)
                late = granted[before:]
                assert not (called_lost and any(until > clock[0] for until in late)), order
            elif step == "time":
                clock[0] += 7.0  # two are over a lease and its margin, one is not
            elif watch.is_over(KEY, LEASE_S):
                called_lost = True
                lost += 1
                assert max(granted) + MARGIN_S < clock[0] + 1e-9, order
    assert lost > 100, "the model reaches what it is about"


def test_renewal_takes_the_time_first_and_looks_for_a_revocation_last() -> None:
    seen: list[str] = []

    class Recording(Register):
        def renew(self, key: tuple[str, int, int], count: int) -> None:
            seen.append("renew")
            super().renew(key, count)

        def is_revoked(self, job: str, attempt: int) -> bool:
            seen.append("look")
            return super().is_revoked(job, attempt)

    def clock() -> float:
        seen.append("time")
        return 5.0

    lease = Lease(Recording(), KEY, LEASE_S)
    assert lease.renew(clock) == 5.0 + LEASE_S
    assert seen == ["time", "renew", "look"]


def test_watch_revokes_before_its_last_look() -> None:
    """A renewal between the two is seen by the look; one after it sees the revocation."""
    register, now = Register(), [0.0]
    register.renew(KEY, 1)
    watch = Watch(register, lambda: now[0])
    watch.is_over(KEY, LEASE_S)
    now[0] = LEASE_S + MARGIN_S + 1
    original = register.revoke

    def renewed_meanwhile(job: str, attempt: int) -> None:
        register.renew(KEY, 2)
        original(job, attempt)

    register.revoke = renewed_meanwhile  # type: ignore[method-assign]
    assert not watch.is_over(KEY, LEASE_S)
    assert Lease(register, KEY, LEASE_S).renew(lambda: now[0]) is None


def test_node_that_spoke_has_its_whole_lease_again() -> None:
    register, now = Register(), [0.0]
    register.renew(KEY, 1)
    watch = Watch(register, lambda: now[0])
    assert not watch.is_over(KEY, LEASE_S)
    watch.heard(KEY)
    now[0] = LEASE_S + MARGIN_S + 1
    assert not watch.is_over(KEY, LEASE_S)


def test_node_that_never_renewed_is_lost_only_after_a_whole_lease_of_watching() -> None:
    register, now = Register(), [100.0]
    watch = Watch(register, lambda: now[0])
    assert not watch.is_over(KEY, LEASE_S)
    now[0] += LEASE_S + MARGIN_S + 0.1
    assert watch.is_over(KEY, LEASE_S)
    assert Lease(register, KEY, LEASE_S).renew() is None, "an agent that comes late gets no time"


def test_renewals_come_often_enough_to_miss_several() -> None:
    assert Lease(Register(), KEY, LEASE_S).every_s == pytest.approx(LEASE_S / RENEWALS_PER_LEASE)
    assert RENEWALS_PER_LEASE >= 5


def test_watch_that_was_stopped_while_it_asked_revokes_nobody() -> None:
    """The answer was fresh when it was given; what was renewed while we were stopped, we have not seen."""
    register, now = Register(), [0.0]
    register.renew(KEY, 1)
    watch = Watch(register, lambda: now[0])
    assert not watch.is_over(KEY, LEASE_S)
    now[0] += 1
    answer = register.renewed

    def stopped_after_the_answer(key: tuple[str, int, int]) -> int | None:
        count = answer(key)
        now[0] += 5 * LEASE_S
        register.renew(KEY, 2)
        return count

    register.renewed = stopped_after_the_answer  # type: ignore[method-assign]
    assert not watch.is_over(KEY, LEASE_S)
    assert register.revoked == set()
    register.renewed = answer  # type: ignore[method-assign]
    assert not watch.is_over(KEY, LEASE_S), "it has moved"
