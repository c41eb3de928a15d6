"""scikit-learn's digits (1,797 scans of 8x8 pixels, from UCI's optical recognition set) as an image folder.

    python -m rexnet.data.digits DIR

About a fifth of each class is the validation split, chosen by a hash of the sample's number, so it is the same
everywhere and for ever: 1,438 for training, 359 for validation.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.contract import Exit
from jobs.errors import RexError, SpecError

MARK = "digits.complete"
VAL_SHARE = 0.2


def write_digits(directory: str | Path) -> bool:
    """Write the data set to `directory` unless it is there; True if this call wrote it.

    It appears whole (written aside and renamed) or not at all; of two at once one wins and the other finds it done.
    SpecError if the folder holds something else.
    """
    target = Path(directory).absolute()
    if _complete(target):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(aside)
        aside.chmod(0o755)
        aside.rename(target)  # replaces an empty folder, fails on any other
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if _complete(target):
            return False
        raise SpecError(
            f"{target}: cannot write the digits there: {error.strerror}", hint="name a new folder"
        ) from error
    return True


def _complete(target: Path) -> bool:
    return (target / MARK).is_file()


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits  # a second to import: only for whoever writes

    digits = load_digits()
    for label in range(10):
        members = np.flatnonzero(digits.target == label).tolist()
        members.sort(key=lambda sample: hashlib.sha256(f"digits-{sample}".encode()).digest())
        num_val = round(len(members) * VAL_SHARE)
        for i, sample in enumerate(members):
            path = folder / ("val" if i < num_val else "train") / str(label) / f"{sample:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.round(digits.images[sample] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
    (folder / MARK).write_text("")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m rexnet.data.digits DIR", file=sys.stderr)
        return Exit.CONFIG
    try:
        wrote = write_digits(arguments[0])
    except RexError as error:
        print(f"digits: {error}", file=sys.stderr)
        return Exit.CONFIG
    print(f"{'wrote' if wrote else 'found'} the digits in {arguments[0]}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
