"""Weights' files for people: MindCV's `ckpt_save_policy`, beside the chain of checkpoints that a resume reads.

Every `ckpt_save_interval` epochs, and after the last, rank 0 writes `<model>-<epoch>_<step>.ckpt` with MindCV's
parameter names, and deletes what the policy lets go. `index.json` beside the files says which are ours, so a restarted
run goes on with them. A file that the index does not name with its SHA-256 is never deleted nor written over. The
folder belongs to one run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.errors import SpecError
from rexnet.checkpoint import Arrays
from rexnet.recipe import Recipe
from rexnet.weights import EMA_PREFIX, is_state

log = logging.getLogger("rexnet.train")
INDEX = "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One file: written after `step` optimiser steps, `epoch` of them whole; `top1` a share, None if not validated."""

    file: str
    epoch: int
    step: int
    top1: float | None
    sha256: str


def choose(kept: list[Kept], policy: str, number: int) -> list[Kept]:
    """Which of these stay: the `number` newest, or of "top_k" the best, and of equals the earliest. In that order."""
    if policy == "latest_k":
        return sorted(kept, key=lambda one: -one.step)[:number]
    return sorted(kept, key=lambda one: (-(one.top1 if one.top1 is not None else -1.0), one.step))[:number]


class WeightsKeeper:
    """Keeps the recipe's weights' files in `directory`; without a `ckpt_save_policy` it keeps none."""

    def __init__(self, recipe: Recipe, directory: str | Path) -> None:
        """Take up what an earlier start left there. SpecError if the index there cannot be read."""
        self._recipe, self._directory = recipe, Path(directory)
        self.kept = [one for one in self._read_index() if self._is_ours(one)] if recipe.ckpt_save_policy else []

    def add(self, arrays: Arrays, epoch: int, step: int, top1: float | None) -> Path | None:
        """Write the model's arrays, and the averages if the recipe says `ema`; the file, or None if it is not to stay.

        `arrays` are copies by name; a trainer's state among them is left out. At any moment of a crash the index names
        every file that is ours.
        """
        recipe = self._recipe
        due = epoch % recipe.ckpt_save_interval == 0 or epoch >= recipe.epoch_size
        if recipe.ckpt_save_policy is None or not due:
            return None
        new = Kept(file=f"{recipe.model}-{epoch}_{step}.ckpt", epoch=epoch, step=step, top1=top1, sha256="")
        others = [one for one in self.kept if one.file != new.file]
        stay = choose([*others, new], recipe.ckpt_save_policy, recipe.keep_checkpoint_max)
        if new not in stay:
            return None
        target = self._directory / new.file
        self._directory.mkdir(parents=True, exist_ok=True)
        aside, sha256 = self._write_aside(target, arrays)
        if target.exists() and not self._may_replace(target, sha256):
            aside.unlink()
            # Training goes on: nothing but this copy is lost, a resume reads the chain of checkpoints.
            log.warning("action=weights-not-kept file=%s cause=a file of that name is there and is not ours", target)
            return None
        new = Kept(**{**asdict(new), "sha256": sha256})
        self.kept = [*others, new]
        self._write_index()
        os.replace(aside, target)
        gone = [one for one in others if one not in stay]
        for one in gone:
            if self._is_ours(one):
                (self._directory / one.file).unlink()
        if gone:
            self.kept = [one for one in self.kept if one not in gone]
            self._write_index()
        log.info("action=weights-kept file=%s top1=%s kept=%d", target, top1, len(self.kept))
        return target

    def _write_aside(self, target: Path, arrays: Arrays) -> tuple[Path, str]:
        """The file under another name, durable, and its SHA-256."""
        import mindspore as ms

        plain = {name.removeprefix(EMA_PREFIX) for name in arrays}
        chosen = [
            {"name": name, "data": ms.Tensor(array)}
            for name, array in arrays.items()
            if (self._recipe.ema if name.startswith(EMA_PREFIX) else not is_state(name, plain))
        ]
        aside = target.with_name(".weights-new.ckpt")
        aside.unlink(missing_ok=True)
        ms.save_checkpoint(chosen, str(aside))
        aside.chmod(0o644)  # MindSpore leaves it read-only
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        return aside, _sha256(aside)

    def _may_replace(self, target: Path, sha256: str) -> bool:
        known = [one.sha256 for one in self.kept if one.file == target.name]
        return _sha256(target) in (*known, sha256)

    def _is_ours(self, one: Kept) -> bool:
        """Whether the file is there as we wrote it; says so if not."""
        path = self._directory / one.file
        if not path.is_file():
            log.warning("action=weights-forgotten file=%s cause=it is missing", path)
            return False
        if _sha256(path) != one.sha256:
            log.warning("action=weights-forgotten file=%s cause=it was changed, and is left alone", path)
            return False
        return True

    def _read_index(self) -> list[Kept]:
        path = self._directory / INDEX
        if not path.exists():
            return []
        try:
            return [Kept(**values) for values in json.loads(path.read_text())]
        except (ValueError, TypeError) as error:
            raise SpecError(
                f"ckpt_save_dir: {path} is no index of weights' files: {error}",
                hint="move it away, or name another ckpt_save_dir",
            ) from error

    def _write_index(self) -> None:
        path = self._directory / INDEX
        aside = path.with_name(f".{INDEX}.new")
        with aside.open("w") as file:
            json.dump([asdict(one) for one in self.kept], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
