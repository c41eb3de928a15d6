"""What a rank says of its time."""

from __future__ import annotations

import time

from jobs.contract import Phase
from rexnet.pulse import Pulse


def test_waiting_for_data_is_told_and_stays_part_of_training() -> None:
    pulse = Pulse(rank=0)
    pulse.enter(Phase.TRAINING)
    with pulse.waiting_for_data():
        time.sleep(0.05)
    pulse.update(at_once=True)
    assert 0.05 <= pulse.now.seconds["data_wait"] <= pulse.now.seconds["training"]
