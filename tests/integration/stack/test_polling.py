"""Agents that do not answer, on real Ray: what they cost those that do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.rex import Rex

DRIVER = """
import sys, threading
import ray
from cluster import gang
from cluster.gang import Gangs
from cluster.node.agent import NAMESPACE, agent_name

class Stands:
    # An agent in all that a poll sees; it answers once it is let go.
    def __init__(self):
        self.going, self.polls = threading.Event(), 0
    def poll(self):
        self.polls += 1
        self.going.wait()
        return {"polls": self.polls}
    def go(self):
        self.going.set()

def start(job):
    name = agent_name(job, 1, 0)
    made = ray.remote(Stands).options(name=name, namespace=NAMESPACE, num_cpus=0, max_concurrency=4).remote()
    return made

gangs = Gangs(sys.argv[1])
gangs.connect()
quick, slow = start("quick"), start("slow")
ray.get([quick.go.remote(), slow.__ray_ready__.remote()])
both = [("quick", 1, 1), ("slow", 1, 1)]

def answers():
    views = gangs.poll(both)
    return [(view.answer, (view.report or {}).get("polls")) for job, attempt, _ in both for view in views[job, attempt]]

gang._POLL_S, gang._ASK_AGAIN_S = 0.5, 3600.0
gangs.poll(both[1:])
gang._POLL_S = 3600.0  # whoever waits for it now, waits too long
print(answers())
print(answers())
gang._POLL_S, gang._ASK_AGAIN_S = 0.5, 0.0  # its answer may be lost
gangs.poll(both[1:])
gang._POLL_S, gang._ASK_AGAIN_S = 3600.0, 3600.0
print(answers())
ray.get(slow.go.remote())
ray.wait([gangs._unanswered["slow", 1, 0][0]])
print(answers())
print(answers())
"""


def driven(rex: Rex, script: str) -> str:
    """What a driver of its own on the stack's Ray prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, rex.stack.ray_address],
        env={**rex.env, **rex.stack.ray_auth}, cwd=Path(__file__).parents[3], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_agent_that_does_not_answer_holds_up_no_other_and_is_asked_once(rex: Rex) -> None:
    assert driven(rex, DRIVER).splitlines() == [
        str([("report", 1), ("pending", None)]),
        str([("report", 2), ("pending", None)]),
        str([("report", 3), ("pending", None)]),
        str([("report", 4), ("report", 2)]),
        str([("report", 5), ("report", 3)]),
    ]


LIGHT = """
import sys
import ray
from cluster.gang import Gangs
from cluster.node.agent import Agent

class Listed(Agent):
    # An agent whose thread does nothing.
    def __init__(self, text, number):
        self.given = (text, number)
    def told(self):
        return self.given, [name for name in ("numpy", "pyarrow", "pydantic", "starlette") if sys.modules.get(name)]

gangs = Gangs(sys.argv[1])
gangs.connect()
print(ray.get(ray.remote(Listed).options(num_cpus=0).remote("text", 1).told.remote()))
"""


def test_agent_does_not_wait_for_imports_of_types_that_it_is_never_given(rex: Rex) -> None:
    assert driven(rex, LIGHT).strip() == str((("text", 1), []))
