"""rexnet.train, of which one rank has neighbours: threads that compute as long as it trains.

They are its own threads, so that the work they make is the same however busy the machine is otherwise.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rexnet import train

CROWDED_RANK = 1
_NEIGHBOURS = 3


def compute() -> None:
    block = bytes(1 << 20)
    while True:
        hashlib.sha256(block).digest()  # without the interpreter's lock: the rank itself is not held up by it


if __name__ == "__main__":
    if int(os.environ["RANK_ID"]) == CROWDED_RANK:
        for _ in range(_NEIGHBOURS):
            threading.Thread(target=compute, daemon=True).start()
    train.leave(train.main(sys.argv[1:]))
