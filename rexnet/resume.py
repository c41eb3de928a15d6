"""Where an attempt starts from: its pin and the checkpoint behind it, or another run's weights, or zero."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.storage import open_store
from cluster.storage.chain.checkpoints import CheckpointStore, Start
from jobs.contract import ENV_ATTEMPT, ENV_INIT_FROM, ENV_MUST_RESUME
from jobs.errors import CorruptCheckpoint, SpecError
from jobs.files import STATE
from jobs.manifest import Manifest
from rexnet.checkpoint import Arrays, parse_init_from, read_arrays
from rexnet.device import Ranks
from rexnet.recipe import Recipe
from rexnet.weights import load_weights, read_weights, set_parameters
from rexnet.world import World

if TYPE_CHECKING:
    from mindspore import Parameter

    from rexnet.model import ReXNet
    from rexnet.step import TrainStep

log = logging.getLogger("rexnet.train")


def start_attempt(store: CheckpointStore, world: World, ranks: Ranks) -> Start:
    """Rank 0 pins the attempt; the others read the pin. The number travels in a sum, which is the barrier too."""
    number = 0
    if world.is_first:
        asked = os.environ.get(ENV_ATTEMPT)
        start = store.start_attempt(int(asked) if asked else None, must_resume=os.environ.get(ENV_MUST_RESUME) or None)
        number = start.attempt
    number = ranks.sum(number)
    return start if world.is_first else store.pinned(number)


def restore(
    store: CheckpointStore, manifest: Manifest, parameters: Sequence[Parameter], train: TrainStep, global_batch: int
) -> None:
    """Set all state from the checkpoint. SpecError if a step of this run is not one of that run."""
    if manifest.samples != manifest.step * global_batch:
        was = manifest.samples // max(manifest.step, 1)
        raise SpecError(
            f"{manifest.name} was made with a global batch of {was}, this run has one of {global_batch}",
            hint=f"say --global_batch {was}, without scale_lr: it is kept on any number of devices, by accumulation",
        )
    set_arrays(read_arrays(store.read(manifest, STATE), manifest.name), manifest.name, parameters, train)


def set_arrays(arrays: Arrays, source: str, parameters: Sequence[Parameter], train: TrainStep) -> None:
    """Set all state that a checkpoint holds. SpecError if names or shapes are others."""
    own = {parameter.name for parameter in parameters}
    set_parameters(parameters, {name: array for name, array in arrays.items() if name in own}, source)
    train.set_state({name: array for name, array in arrays.items() if name not in own}, source)


def take_weights(network: ReXNet, recipe: Recipe) -> None:
    """Parameters, not optimiser or step, of another job's checkpoint (REX_INIT_FROM) or of the file `ckpt_path`."""
    init_from = os.environ.get(ENV_INIT_FROM)
    if init_from:
        uri, name, sha256 = parse_init_from(init_from)
        store = CheckpointStore(open_store(uri), "")
        manifest = store.load(name)
        if manifest.sha256() != sha256:
            raise CorruptCheckpoint(f"manifest {name} in {uri} has sha256 {manifest.sha256()}, not {sha256}")
        load_weights(network, read_arrays(store.read(manifest, STATE), name), name, fresh_head=recipe.fresh_head)
        log.info("action=initialised manifest=%s of job %s", name, manifest.job)
    elif recipe.ckpt_path:
        load_weights(network, read_weights(recipe.ckpt_path), recipe.ckpt_path, fresh_head=recipe.fresh_head)


def differences(manifest: Manifest, world: World, recipe: Recipe, versions: Mapping[str, str]) -> list[str]:
    """What voids the claim that the resumed run ends with the same bytes; it is said, not refused."""
    pairs: dict[str, tuple[Any, Any]] = {
        "workers": (manifest.world_size, world.size),
        "CPUs per worker": (len(manifest.cpus), len(world.cpus)),
        "recipe": (manifest.config_sha256[:8], recipe.digest()[:8]),
        "versions": (manifest.versions, dict(versions)),
    }
    return [f"{what} were {was}, are {now}" for what, (was, now) in pairs.items() if was != now]
