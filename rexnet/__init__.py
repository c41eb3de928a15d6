"""The training program: ReXNet in MindSpore, its recipe, data, step, checkpoints, metrics and validation.

Belongs here: everything a rank does between its start and its exit code, runnable under a bare `msrun` and, through
the environment names of `jobs.contract`, under the control plane, of which it knows nothing else.
Does not belong here: scheduling, Ray, the control plane's store; imports of `orchestrator`, and of `cluster` apart
from `cluster.storage`. Importing `rexnet`, `rexnet.recipe` or `rexnet.data` imports no MindSpore; only the model, the
step, the device-side half of checkpoints and the two programs (`train`, `validate`) do.
"""
