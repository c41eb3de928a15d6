"""C++ kernels for training and evaluating ReXNet on CPU, and whether they serve here (docs/kernels.md).

They serve unless REX_KERNELS=builtin, there is no C++ compiler, or there are Ascend devices; then MindSpore's built-in
operators do, and one log line says so. REX_KERNELS may also name the best instruction set to use. Imports no
MindSpore; `rexnet.kernels.ops` does.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import logging
import os
from pathlib import Path

from jobs.errors import SpecError

log = logging.getLogger(__name__)
ENV_KERNELS = "REX_KERNELS"
BUILTIN = "builtin"
INSTRUCTION_SETS = ("x86-64-v4", "x86-64-v3", "baseline")  # best first


def library() -> Path | None:
    """The built library, or None: the built-in operators serve. SpecError if REX_KERNELS is none of what it may be.

    The first call in a fresh checkout compiles, which takes about ten seconds.
    """
    choice, valid = _choice(), (BUILTIN, *INSTRUCTION_SETS)
    if choice and choice not in valid:
        raise SpecError(f"{ENV_KERNELS}: {choice!r} is no choice", hint=f"unset it, or set it to {', '.join(valid)}")
    if choice == BUILTIN or any(Path("/dev").glob("davinci[0-9]*")):
        return None
    return _build()


def digest() -> str:
    """SHA-256 over sources, flags, compiler and library, 64 hex digits; "builtin" where the built-in operators serve.

    The library is the same for all x86-64 processors; what it does is not: see `instruction_set`.
    """
    path = library()
    return _digest(path) if path else BUILTIN


def instruction_sets() -> tuple[str, ...]:
    """Those of INSTRUCTION_SETS that the kernels may run with here, best first; none where they do not serve.

    Each computes the same to a few units in the last place, not bit for bit. REX_KERNELS may name the best one that is
    wanted; SpecError if this processor has not got it.
    """
    names, choice = _names(), _choice()
    if not names or not choice:
        return names
    if choice not in names:
        raise SpecError(f"{ENV_KERNELS}: this processor has not got {choice}", hint=f"it has {', '.join(names)}")
    return names[names.index(choice) :]


def instruction_set() -> str:
    """What they run with: the best one unless `use` chose another; "builtin" where they do not serve."""
    functions = _functions()
    if functions is None:
        return BUILTIN
    functions.chosen_instruction_set.restype = ctypes.c_char_p
    return str(functions.chosen_instruction_set().decode())


def use(name: str) -> bool:
    """Run with that one of `instruction_sets` from now on; False, and nothing has changed, where it is none of them."""
    functions = _functions()
    if functions is None or name not in instruction_sets():
        return False
    functions.choose_instruction_set(_names().index(name))
    return True


def _choice() -> str:
    return os.environ.get(ENV_KERNELS, "")


def _names() -> tuple[str, ...]:
    """What this processor has, best first, as the library numbers it."""
    functions = _functions()
    if functions is None:
        return ()
    functions.instruction_set.restype = ctypes.c_char_p
    found = (functions.instruction_set(i) for i in itertools.count())
    return tuple(name.decode() for name in itertools.takewhile(lambda name: name is not None, found))


def _functions() -> ctypes.CDLL | None:
    path = library()
    return None if path is None else ctypes.CDLL(str(path))


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
