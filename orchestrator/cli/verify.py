"""`rexctl verify`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.common import HomeOption, JobArgument, JsonOption, open_store, print_json


def command(
    job: JobArgument,
    other: Annotated[str | None, typer.Argument(help="The job to compare with.", metavar="OTHER")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Check a job's resume certificate; with OTHER, name the first step at which the two runs part (exit 1)."""
    from orchestrator.checkpoints.verify import Certificate, certificate_of, compare

    def shown(certificate: Certificate) -> dict[str, Any]:
        return {
            "job_id": certificate.job_id,
            "manifest": certificate.manifest,
            "step": certificate.step,
            "certificate": certificate.digest,
        }

    store = open_store(home)
    left = certificate_of(store.get(job))
    if other is None:
        if json:
            return print_json(shown(left))
        print(f"{left.job_id}: certificate of step {left.step} is {left.digest}")
        steps = [entry.step for entry in left.entries]
        whole = "whole" if steps[:1] in ([], [1]) else "whole as far back as its checkpoints are there"
        return print(f"its chain to {left.manifest} is {whole}: steps {steps[0]} to {steps[-1]}" if steps else whole)
    found = compare(left, right := certificate_of(store.get(other)))
    part = found.difference
    if json:
        print_json({
            "left": shown(left), "right": shown(right), "common_steps": found.common,
            "parts_at_step": part.left.step if part else None,
            "losses": [part.left.loss, part.right.loss] if part else None,
        })  # fmt: skip
    elif part is None:
        print(f"{left.job_id} and {right.job_id} agree to the bit in all {found.common} steps that both have")
    else:
        print(
            f"{left.job_id} and {right.job_id} part at step {part.left.step}: "
            f"losses {part.left.loss!r} and {part.right.loss!r}"
            + (", so it is samples or random state that differ" if part.left.loss_bits == part.right.loss_bits else "")
        )
    if part is not None:
        raise typer.Exit(1)
    return None
