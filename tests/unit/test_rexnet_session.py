"""What a rank says while it ends: whoever watches for hangs goes by it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.contract import Phase
from rexnet.pulse import Pulse
from rexnet.session import Session


def test_last_commit_is_no_training_step_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    session = object.__new__(Session)
    session.pulse = Pulse(rank=0)
    session.pulse.enter(Phase.TRAINING)
    committing_in: list[str] = []

    def finish(status: str, **_: Any) -> None:
        committing_in.append(session.pulse.now.phase)

    monkeypatch.setattr(session, "_finish", finish)
    session.complete()
    assert committing_in == [Phase.DRAINING.value] and session.pulse.now.phase == Phase.DONE.value
