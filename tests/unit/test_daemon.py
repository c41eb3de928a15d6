"""The rounds of the control plane."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from jobs.budgets import Cause
from jobs.spec import build_spec
from jobs.states import StopRequested
from orchestrator.control.loop import Loop
from orchestrator.daemon import _round
from orchestrator.store import Store
from orchestrator.store.changes import Changes

SPEC = build_spec({"name": "j", "program": {"module": "m"}})


def submit(store: Store) -> None:
    store.submit("j", SPEC, store_uri="file:///objects", init_from=None, now=1.0)


class Idle:
    """A loop that finds nothing to do, while others may write to the store."""

    def __init__(self, store: Store, *, meanwhile: list[str]) -> None:
        self.store, self.meanwhile = store, meanwhile

    def tick(self) -> bool:
        for what in self.meanwhile:
            if what == "submit":
                submit(self.store)
            elif what == "fail":
                raise RuntimeError("a bug")
            else:
                self.store.set_flag("theirs", what)
        return True


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(f"sqlite:///{tmp_path / 'store.db'}")
    made.migrate()
    return made


@pytest.mark.parametrize(("meanwhile", "idle"), [([], True), (["a flag"], True), (["submit"], False)])
def test_job_that_is_submitted_while_a_round_goes_on_is_not_missed(
    store: Store, meanwhile: list[str], idle: bool
) -> None:
    changes = Changes(store.engine)
    assert _round(cast(Loop, Idle(store, meanwhile=meanwhile)), store, changes) is idle
    assert not changes.seen(), "what was written during the round calls for no other one"
    changes.close()


def test_job_that_has_ended_makes_no_round_busy(store: Store) -> None:
    changes = Changes(store.engine)
    submit(store)
    asked = StopRequested(cause=Cause.CANCELLED, detail="")
    assert store.request("j", asked, action="cancel_requested").state.final
    assert _round(cast(Loop, Idle(store, meanwhile=[])), store, changes)
    changes.close()


def test_round_that_fails_calls_for_no_other_one_by_what_it_wrote(store: Store) -> None:
    changes = Changes(store.engine)
    with pytest.raises(RuntimeError):
        _round(cast(Loop, Idle(store, meanwhile=["a flag", "fail"])), store, changes)
    assert not changes.seen()
    changes.close()
