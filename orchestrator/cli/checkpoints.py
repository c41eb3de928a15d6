"""`rexctl checkpoints`: ls, show, verify, pull, export, gc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import CorruptCheckpoint, UserError
from orchestrator.cli.common import HomeOption, JsonOption, open_store, print_json, say
from orchestrator.cli.progress import bar, size

if TYPE_CHECKING:
    from orchestrator.checkpoints.chains import Chain
    from orchestrator.checkpoints.listing import Found
    from orchestrator.checkpoints.verdicts import Verdict

app = typer.Typer(help="Look at a job's checkpoints, check them, copy them, clean up.", no_args_is_help=True)

ChainArgument = Annotated[
    str, typer.Argument(help="Job id or beginning of one, or the URI of its store.", metavar="JOB|URI")
]
WhichArgument = Annotated[
    str | None,
    typer.Argument(
        help="A step, or a manifest as `ls` prints it; default: the newest live one.",
        metavar="[STEP|MANIFEST]",
        show_default=False,
    ),
]


class Format(str, Enum):
    CKPT = "ckpt"
    SAFETENSORS = "safetensors"


@app.command()
def ls(chain: ChainArgument, home: HomeOption = None, json: JsonOption = False) -> None:
    """List the checkpoints, newest first, with their states.

    Manifests are read and files are not: `verify` does that.
    """
    from orchestrator.checkpoints.listing import find_checkpoints
    from orchestrator.cli import checkpoint_json, checkpoint_text

    with _damage_is_exit_1():
        there = _find(chain, home)
        found = find_checkpoints(there)
    if json:
        return print_json([checkpoint_json.row(one) for one in found])
    return print(checkpoint_text.table(found) if found else f"{there.job or there.store.uri} has no checkpoint yet")


@app.command()
def show(chain: ChainArgument, which: WhichArgument = None, home: HomeOption = None, json: JsonOption = False) -> None:
    """Show one checkpoint: manifest, files, what is shared.

    Each file with its object, its sha256, and whether it was its parent's already.
    """
    from orchestrator.cli import checkpoint_json, checkpoint_text

    with _damage_is_exit_1():
        there, one = _choose(chain, which, home)
        if json:
            return print_json(checkpoint_json.whole(there.store.uri, one))
        return print(checkpoint_text.details(there.store.uri, one))


@app.command()
def verify(
    chain: ChainArgument,
    which: WhichArgument = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Dead branches, too, and what is left of retired ones.")
    ] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Read checkpoints back whole; exit 1 if one is damaged.

    By default all live ones that have their state, newest first; each is told of as soon as it has been read. Every
    byte is read and hashed; nothing is written.
    """
    from orchestrator.checkpoints.verdicts import Verifier
    from orchestrator.cli import checkpoint_json, checkpoint_text

    if which is not None and everything:
        raise UserError("verify takes a checkpoint or --all, not both", hint="see `rexctl checkpoints verify --help`")
    with _damage_is_exit_1():
        there, chosen = _to_verify(chain, which, everything, home)
        verifier = Verifier(there, chosen)
        total = verifier.total_bytes
        verdicts: list[Verdict] = []
        with bar("verifying", total) as shown:
            for verdict in verifier.verdicts(lambda done: shown.advance(done, total)):
                verdicts.append(verdict)
                if not json:
                    shown.print(checkpoint_text.verdict_lines(verdict))
    num_damaged = sum(verdict.damaged for verdict in verdicts)
    if json:
        print_json({
            "job": there.job, "store": there.store.uri, "num_damaged": num_damaged, "read_bytes": verifier.read_bytes,
            "checkpoints": [checkpoint_json.verdict(verdict) for verdict in verdicts],
        })  # fmt: skip
    else:
        told = _count(len(verdicts), "checkpoint")
        print(f"{told}, {size(verifier.read_bytes)} read, {num_damaged or 'none'} damaged")
    if num_damaged:
        raise typer.Exit(1)


@app.command()
def pull(
    chain: ChainArgument,
    which: WhichArgument = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to make; it may be there if it is empty.", metavar="DIR")
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a checkpoint into a folder, verified.

    Its files and manifest.json: whole, or not at all. Exit 1 if it is damaged.
    """
    from orchestrator.checkpoints import copies

    if out is None:
        raise UserError("pull needs a folder", hint="say -o DIR")
    with _damage_is_exit_1():
        there, one = _choose(chain, which, home)
        manifest = one.whole()
        _say_if_not_live(one)
        with bar("downloading", one.size_bytes) as shown:
            copies.pull(there, manifest, out, lambda done: shown.advance(done, one.size_bytes))
    if json:
        return print_json({
            "manifest": one.name, "step": one.step, "sha256": manifest.sha256(), "path": str(out.absolute()),
            "files": [entry.name for entry in manifest.files], "size_bytes": one.size_bytes,
        })  # fmt: skip
    return print(f"{out}: step {one.step}, {_count(len(one.files), 'file')}, {size(one.size_bytes)}, verified")


@app.command()
def export(
    chain: ChainArgument,
    which: WhichArgument = None,
    *,
    kind: Annotated[Format, typer.Option("--format", help="MindSpore's own, or safetensors.")] = Format.CKPT,
    ema: Annotated[bool, typer.Option("--ema", help="The moving averages of the weights.")] = False,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the file; made if missing.", metavar="DIR")
    ] = Path(),
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Write a checkpoint's weights as one file for MindCV.

    Of a ReXNet, with MindCV's names, as MODEL-SHA8.ckpt or .safetensors; SHA8 are the first 8 digits of the file's
    sha256. Verified before and after. Exit 1 if the checkpoint is damaged.
    """
    from orchestrator.checkpoints import copies

    with _damage_is_exit_1():
        there, one = _choose(chain, which, home)
        manifest = one.whole()
        _say_if_not_live(one)
        total = copies.state_of(manifest).size_bytes
        with bar("exporting", total) as shown:
            values = copies.export(
                there, manifest, out, kind=kind.value, ema=ema, on_bytes=lambda done: shown.advance(done, total)
            )
    if json:
        return print_json({**values, "manifest": one.name, "step": one.step, "job": manifest.job})
    print(values["path"])
    return print(
        f"sha256 {values['sha256']}\n{values['model']}, {values['num_classes']} classes, "
        f"{'moving averages' if ema else 'weights'} of step {one.step}, {size(values['size_bytes'])}"
    )


@app.command()
def gc(
    chain: ChainArgument,
    *,
    keep_last: Annotated[int | None, typer.Option(min=1, help="Keep the newest N.", metavar="N")] = None,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Keep those at multiples of N steps.", metavar="N")
    ] = None,
    keep_best: Annotated[int, typer.Option(min=0, help="Keep the M best by the metric.", metavar="M")] = 0,
    metric: Annotated[str, typer.Option(help="What --keep-best goes by.")] = "top1",
    lowest: Annotated[bool, typer.Option("--min", help="The lowest are the best.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Delete the state of what is not to be kept.

    Of dead branches, too, and what killed writers, probes and doctors left. Without a --keep option everything live is
    kept. With one, the rest goes; the newest that verifies and the one that the newest attempt started from always
    stay. Manifests and the run's record stay in any case.
    """
    from cluster.storage.chain.gc import collect
    from jobs.retention import Retention
    from orchestrator.cli import checkpoint_json, checkpoint_text

    picky = keep_every is not None or keep_best > 0
    retention = Retention(
        last=1 if picky and keep_last is None else keep_last, every_steps=keep_every, best=keep_best, metric=metric,
        mode="min" if lowest else "max",
    )  # fmt: skip
    if (metric != "top1" or lowest) and not keep_best:
        raise UserError("--metric and --min say nothing without --keep-best", hint="say --keep-best M")
    with _damage_is_exit_1():
        there = _find(chain, home)
        alone = dry_run or there.alone()  # one that deletes nothing is in nobody's way
        with bar("collecting", of_bytes=False) as shown:
            done = collect(
                there.store, there.job, retention,
                dry_run=dry_run, alone=alone, ended=there.ended, on_delete=shown.advance,
            )  # fmt: skip
    if done.note:
        say(f"note: {done.note}")
    if json:
        return print_json(checkpoint_json.collection(done, retention, dry_run=dry_run))
    return print(checkpoint_text.collection(done, dry_run=dry_run))


def _find(chain: str, home: str | None) -> Chain:
    from orchestrator.checkpoints.chains import find_chain

    return find_chain(chain, lambda: open_store(home))


def _choose(chain: str, which: str | None, home: str | None) -> tuple[Chain, Found]:
    from orchestrator.checkpoints.listing import choose, find_checkpoints

    there = _find(chain, home)
    return there, choose(there, find_checkpoints(there), which)


def _to_verify(chain: str, which: str | None, everything: bool, home: str | None) -> tuple[Chain, list[Found]]:
    from orchestrator.checkpoints.listing import RETIRED, find_checkpoints

    if which is not None:
        there, one = _choose(chain, which, home)
        return there, [one]
    there = _find(chain, home)
    found = find_checkpoints(there)
    return there, [one for one in found if everything or (one.live and one.state != RETIRED)]


def _say_if_not_live(one: Found) -> None:
    if one.reason:
        say(f"note: {one.name} is quarantined; {one.reason}")
    elif not one.live:
        say(f"note: {one.name} lies on a dead branch: a later attempt did not go on from it")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


@contextmanager
def _damage_is_exit_1() -> Iterator[None]:
    """Damage is an answer, other than a store that gives none."""
    try:
        yield
    except CorruptCheckpoint as error:
        error.exit_code = 1
        raise
