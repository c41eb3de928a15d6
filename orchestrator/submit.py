"""From a job file to a queued job. All that can be found wrong is found before anything is created."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import NotFoundError, SpecError
from jobs.spec import JobSpec, parse_spec
from jobs.states import State
from orchestrator.control.fitness import Standing, survey
from orchestrator.settings import Home
from orchestrator.storage import protocol_for
from orchestrator.store import JobRow, Store
from orchestrator.store.store import new_job_id

if TYPE_CHECKING:
    from orchestrator.stack import Stack


def read_spec(path: Path, home: Home) -> JobSpec:
    """Read and check a job file as far as this machine can tell; SpecError with the key and what is valid."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise SpecError(f"job file {path}: {reason}", hint="give the path of a YAML job file") from error
    spec = parse_spec(text, str(path))
    if home.embedded_ray:
        _check_on_this_machine(spec, str(path), home)
    return spec


def _check_on_this_machine(spec: JobSpec, source: str, home: Home) -> None:
    """The local stack is one node, this one: what it cannot do is known before anything starts."""
    gang = spec.gang
    if gang.nodes > 1:
        raise SpecError(
            f"{source}: gang.nodes is {gang.nodes}, the local cluster has 1 node",
            hint="use gang.nodes: 1, or set ray_address in config.yaml of the state directory",
        )
    if gang.cpus_per_node > home.slots:
        raise SpecError(
            f"{source}: gang.workers_per_node x gang.cpus_per_worker is {gang.cpus_per_node}, "
            f"the local node has {home.slots} slots",
            hint="ask for fewer, or set slots in config.yaml of the state directory",
        )
    if gang.device == "npu":
        raise SpecError(f"{source}: gang.device is npu, the local node has none", hint="valid here: cpu")
    if spec.data.dir is not None and not Path(spec.data.dir).is_dir():
        raise SpecError(f"{source}: data.dir {spec.data.dir} is not a directory", hint="valid: an existing directory")
    _check_program(spec, source)


def _check_program(spec: JobSpec, source: str) -> None:
    program = spec.program
    if program.script is not None and not Path(program.script).is_file():
        raise SpecError(f"{source}: program.script {program.script} is not a file")
    if program.module is not None:
        try:
            found = importlib.util.find_spec(program.module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise SpecError(
                f"{source}: program.module {program.module} is not installed here",
                hint="valid: a module that `python -m` finds",
            )


def check_cluster(spec: JobSpec, store: Store) -> None:
    """An existing cluster: more nodes than it has now is refused; what is merely busy queues.

    A node that is left out does not count; one that has not answered its preflight yet may turn out to be usable.
    Nodes with the same address are one host, of which a gang takes one.
    """
    rows = list(store.nodes())
    verdicts = survey(rows, now=time.time())
    bad = [verdict.reason for verdict in verdicts.values() if verdict.standing is Standing.LEFT_OUT]
    not_used = (Standing.LOST, Standing.LEFT_OUT)
    usable = [row["address"] for row in rows if verdicts[row["id"]].standing not in not_used]
    hosts = len(set(usable))
    if spec.gang.nodes > hosts:
        seen = f"gang.nodes is {spec.gang.nodes}, the cluster has {len(usable)} node{'s' * (len(usable) != 1)}"
        if hosts < len(usable):
            seen += f" on {hosts} host{'s' * (hosts != 1)}, of which a gang takes one node each,"
        if bad:
            raise SpecError(
                f"{seen} that can be used; left out: {'; '.join(bad)}",
                hint="mend what is left out (`rexctl nodes` shows when it is used again) or ask for fewer",
            )
        raise SpecError(seen.rstrip(","), hint="add nodes to the cluster or ask for fewer")


def resolve_init_from(spec: JobSpec, store: Store | None) -> dict[str, Any] | None:
    """The checkpoint that `init_from` names, by manifest and sha256; SpecError if there is none."""
    wanted = spec.init_from
    if wanted is None:
        return None
    try:
        if store is None:
            raise NotFoundError("nothing was ever submitted here")
        source = store.get(wanted.job)
    except NotFoundError as error:
        raise SpecError(f"init_from.job: {error}") from error
    if source.checkpoint is None:
        raise SpecError(f"init_from.job: job {source.id} has committed no checkpoint")
    if wanted.step is None or wanted.step == source.checkpoint["step"]:
        chosen = {"manifest": source.checkpoint["manifest"], "sha256": source.checkpoint["sha256"]}
    else:
        chosen = _manifest_at(source, wanted.step)
    return {"store": source.store_uri, **chosen}


def _manifest_at(source: JobRow, step: int) -> dict[str, str]:
    from cluster.storage import open_store
    from cluster.storage.chain.checkpoints import CheckpointStore

    checkpoints = CheckpointStore(open_store(source.store_uri), source.id)
    newest = checkpoints.load(source.checkpoint["manifest"]) if source.checkpoint else None
    line = checkpoints.history(newest) if newest else []
    for manifest in line:
        if manifest.step == step:
            return {"manifest": manifest.name, "sha256": manifest.sha256()}
    valid = ", ".join(str(manifest.step) for manifest in reversed(line))
    raise SpecError(f"init_from.step: job {source.id} has no checkpoint at step {step}", hint=f"valid: {valid}")


def submit(spec: JobSpec, store: Store, stack: Stack) -> JobRow:
    """Queue the job; from here on it is the control plane's.

    Raises:
        UnsafeStore: no commit protocol is safe on the object store.
        StoreUnavailable: the object store, if it was never asked before, does not answer or does not let us write.
        SpecError: the cluster has too few nodes for it.
    """
    home, init_from = stack.home, resolve_init_from(spec, store)
    if not home.embedded_ray:
        try:
            check_cluster(spec, store)
        except SpecError:
            stack.await_round(store, since=time.time())  # a node may have come since the control plane last looked
            check_cluster(spec, store)
    protocol = protocol_for(home.objects_uri, store, profile=spec.credentials.aws_profile)
    job_id = new_job_id(spec.name)
    store.submit(
        job_id,
        spec,
        store_uri=f"{home.objects_uri}/{job_id}",
        commit_protocol=protocol,
        init_from=init_from,
        now=time.time(),
    )
    return store.get(job_id)


def why(store: Store, row: JobRow) -> list[str]:
    """What a job waits for and what its preemptions cost, in sentences."""
    lines = []
    if row.state is State.QUEUED:
        lines.append(f"queued: {row.waiting}")
    elif row.state is State.BACKOFF:
        wait_s = max(0.0, (row.job.not_before or 0) - time.time())
        lines.append(f"backs off {wait_s:.0f} s more after: {row.job.detail or 'a failure'}")
    elif row.state.active:
        stop = f", asked to stop: {row.job.stop_for.value} {row.job.detail}" if row.job.stop_for else ""
        lines.append(f"{row.state.value} in attempt {row.job.attempt}{stop}")
    else:
        cause = row.job.cause.value if row.job.cause else "done"
        lines.append(f"{row.state.value} ({cause})" + (f": {row.job.detail}" if row.job.detail else ""))
    attempts = store.attempts(row.id)
    for entry in store.events(row.id):
        if entry["action"] != "preempt_requested":
            continue
        attempt = next((a for a in attempts if a.number == entry["attempt"]), None)
        if attempt is None or attempt.ended_at is None:
            continue
        successor = next((a for a in attempts if a.number == attempt.number + 1), None)
        drained_s = attempt.ended_at - (attempt.stop_at or attempt.ended_at)
        repeated = attempt.to_step - successor.from_step if successor and successor.from_step is not None else 0
        by = entry["detail"].get("reason") or "asked for by hand"
        lines.append(
            f"attempt {attempt.number} was preempted at step {attempt.to_step}: {by}; "
            f"draining took {drained_s:.1f} s, {max(0, repeated)} steps were repeated"
        )
    return lines
