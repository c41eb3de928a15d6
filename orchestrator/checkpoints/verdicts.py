"""Whether checkpoints are whole: each is read back and hashed, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.storage.chain.content import verified_download
from jobs.errors import CorruptCheckpoint
from jobs.manifest import FileEntry
from orchestrator.checkpoints.chains import Chain
from orchestrator.checkpoints.folders import growing
from orchestrator.checkpoints.listing import RETIRED, Found


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found of a checkpoint: `problems` are one sentence each, none if it is whole."""

    checkpoint: Found
    problems: tuple[str, ...]

    @property
    def damaged(self) -> bool:
        return bool(self.problems)


@dataclass(slots=True)
class Verifier:
    """Reads the files of `found`, of `chain`; what several checkpoints name is read once, if it is whole.

    `on_bytes` is told how many of `total_bytes` have been read.
    """

    chain: Chain
    found: Sequence[Found]
    read_bytes: int = 0
    _whole: set[tuple[str, int]] = field(default_factory=set)

    @property
    def total_bytes(self) -> int:
        """What is to be read, if all is whole."""
        return sum(size for _, size in {_content(entry) for one in self.found for entry in one.files})

    def verdicts(self, on_bytes: Callable[[int], None]) -> Iterator[Verdict]:
        """One for each checkpoint, in their order, as soon as it is known.

        Raises:
            StoreUnavailable: the store does not answer, so nothing is known of this one and those after it.
        """
        for listed in self.found:
            one, problems = listed, self._problems(listed, on_bytes)
            if problems and self._is_retired(one):  # since it was listed: what is missing is missing by right
                one = replace(one, state=RETIRED)
                problems = self._problems(one, on_bytes)
            yield Verdict(checkpoint=one, problems=tuple(problems))

    def _problems(self, one: Found, on_bytes: Callable[[int], None]) -> list[str]:
        if one.manifest is None:
            return [one.reason]
        problems = []
        if one.manifest.job != self.chain.job:
            problems.append(f"manifest {one.name} belongs to job {one.manifest.job}, not to {self.chain.job}")
        for entry in one.files:
            if _content(entry) in self._whole:
                continue
            try:
                self._read(entry, one.name, on_bytes)
            except CorruptCheckpoint as error:
                problems.append(str(error))
            else:
                self._whole.add(_content(entry))
        return problems

    def _is_retired(self, one: Found) -> bool:
        return any(now.retired for now in self.chain.checkpoints.manifests() if now.name == one.name)

    def _read(self, entry: FileEntry, manifest: str, on_bytes: Callable[[int], None]) -> None:
        before = self.read_bytes
        with tempfile.TemporaryDirectory(prefix="rex-verify-") as folder:
            target = Path(folder) / "blob"
            with growing(target, lambda now: on_bytes(before + min(now, entry.size_bytes))):
                verified_download(self.chain.store, entry, target, manifest)
        self.read_bytes += entry.size_bytes
        on_bytes(self.read_bytes)


def _content(entry: FileEntry) -> tuple[str, int]:
    return entry.key, entry.size_bytes
