"""Nodes as their preflight sees them: what a good one says, and what it is held against."""

from __future__ import annotations

from typing import Any

from cluster.preflight.code import Code
from orchestrator.control.fitness import Wanted

PACKAGES = {
    "mindspore": "2.10.0",
    "numpy": "1.26.4",
    "opencv-python-headless": "4.11.0",
    "pillow": "11.0",
    "ray": "2.60.0",
}
WANTED = Wanted(
    python="3.11",
    packages=PACKAGES,
    code=Code(digest="d" * 64, archive=b"zip"),
    work_root="/work",
    min_free_bytes=1 << 30,
)


def facts(**changes: Any) -> dict[str, Any]:
    """What `cluster.preflight.facts.facts` sees on a node that is as it should be."""
    return {
        "host": "h1",
        "incarnation": "boot/1",
        "python": "3.11",
        "packages": dict(PACKAGES),
        "lock": "l" * 64,
        "code": "d" * 64,
        "ascend": {},
        "npus": {},
        "free_bytes": 5 << 30,
        "unwritable": "",
        "shm_bytes": 1 << 30,
        "clock": 1000.0,
        "took_s": 0.1,
        **changes,
    }
