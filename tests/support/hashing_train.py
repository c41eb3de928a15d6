"""rexnet.train, of which every rank writes down the digest of its state whenever rank 0 may save.

Batch norm's moving statistics are left out: they are each rank's own, and rank 0's are the truth.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rexnet import train
from rexnet.session import Session

STATISTICS = ("moving_mean", "moving_variance")
_is_due = vars(Session)["checkpoint_is_due"].fget


def checkpoint_is_due(session: Session) -> bool:
    arrays = session._arrays()
    digests = {True: hashlib.sha256(), False: hashlib.sha256()}
    for name in sorted(arrays):
        digest = digests[name.endswith(STATISTICS)]
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    with Path(f"state-rank{session.world.rank}.txt").open("a") as file:
        file.write(f"{session.step} {digests[False].hexdigest()} {digests[True].hexdigest()}\n")
    return bool(_is_due(session))


Session.checkpoint_is_due = property(checkpoint_is_due)  # type: ignore[assignment, method-assign]

if __name__ == "__main__":
    train.leave(train.main(sys.argv[1:]))
