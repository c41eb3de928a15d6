"""C++ kernels for training and evaluating ReXNet on CPU, and whether they serve here (docs/kernels.md).

They serve unless REX_KERNELS=builtin, there is no C++ compiler, or there are Ascend devices; then MindSpore's built-in
operators do, and one log line says so. Imports no MindSpore; `rexnet.kernels.ops` does.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)
ENV_KERNELS = "REX_KERNELS"
BUILTIN = "builtin"


def library() -> Path | None:
    """The built library, or None: the built-in operators serve. SpecError if REX_KERNELS is neither unset nor builtin.

    The first call in a fresh checkout compiles, which takes about ten seconds.
    """
    choice = os.environ.get(ENV_KERNELS, "")
    if choice not in {"", BUILTIN}:
        from jobs.errors import SpecError

        raise SpecError(f"{ENV_KERNELS}: {choice!r} is no choice", hint=f"unset it, or set it to {BUILTIN}")
    if choice == BUILTIN or any(Path("/dev").glob("davinci[0-9]*")):
        return None
    return _build()


def digest() -> str:
    """SHA-256 over sources, flags, compiler and library, 64 hex digits; "builtin" where the built-in operators serve.

    The library is the same for all x86-64 processors; what it does is not: see `instruction_set`.
    """
    path = library()
    return _digest(path) if path else BUILTIN


def instruction_set() -> str:
    """What the kernels run with here: x86-64-v4, x86-64-v3 or baseline; "builtin" where they do not serve."""
    import ctypes

    path = library()
    if path is None:
        return BUILTIN
    function = ctypes.CDLL(str(path)).instruction_set
    function.restype = ctypes.c_char_p
    return str(function().decode())


@functools.cache
def _build() -> Path | None:
    from rexnet.kernels.build import BuildError, build

    try:
        return build()
    except BuildError as error:  # slower, not wrong: the built-in operators compute the same
        log.warning("MindSpore's built-in operators serve, about ten times slower: %s", error)
        return None


@functools.cache
def _digest(path: Path) -> str:
    """The name holds the hash of sources, flags and compiler."""
    return hashlib.sha256(path.name.encode() + b"\0" + path.read_bytes()).hexdigest()
