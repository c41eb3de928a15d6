"""A store that cannot keep checkpoints is found out before training, and said in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.contract import Exit
from rexnet.data.digits import write_digits
from tests.conformance.backends import aws_environment
from tests.support.training import SMALL


@pytest.mark.parametrize(
    ("uri", "environment", "sentence"),
    [
        ("s3://bucket/job", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials were found"),
        ("file:///proc/checkpoints", {}, "file:///proc/checkpoints: cannot create probe/"),
    ],
)
def test_store_that_cannot_be_written_ends_the_run_before_its_first_step(
    tmp_path: Path, uri: str, environment: dict[str, str], sentence: str
) -> None:
    data = tmp_path / "digits"
    write_digits(data)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "REX_"))}
    env = {**clean, **aws_environment("http://127.0.0.1:9", "any", "any"), **environment}
    command = [sys.executable, "-m", "rexnet.train", *SMALL, "--distribute=False", f"--data_dir={data}",
               f"--ckpt_store={uri}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == Exit.INFRASTRUCTURE, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("rexnet.train:")]
    assert len(said) == 1 and sentence in said[0]
    assert "action=trained" not in done.stderr and not list(tmp_path.glob("journal-*"))
