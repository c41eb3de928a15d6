"""The kernels' library: how it is built, chosen and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import SpecError
from rexnet import kernels
from rexnet.kernels import build

needs_library = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler here")


@needs_library
def test_instruction_set_can_be_held_down_and_one_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from rexnet import kernels; print(kernels.instruction_set(), *kernels.instruction_sets(), " \
        "kernels.use('x86-64-v3'))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, kernels.ENV_KERNELS: "baseline"}, capture_output=True,
        text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "baseline baseline False\n"
    monkeypatch.setenv(kernels.ENV_KERNELS, "x86-64-v4")
    monkeypatch.setattr(kernels, "_names", lambda: ("x86-64-v3", "baseline"))
    with pytest.raises(SpecError, match="this processor has not got x86-64-v4") as caught:
        kernels.instruction_sets()
    assert caught.value.hint == "it has x86-64-v3, baseline"


def test_the_library_stays_when_it_is_closed() -> None:
    """Its threads run on; MindSpore closes it once the last operator is gone (seen: a crash at some address)."""
    script = """
import _ctypes, ctypes, sys
_ctypes.dlclose(ctypes.CDLL(sys.argv[1])._handle)
print(sys.argv[1] in open("/proc/self/maps").read())
"""
    command = [sys.executable, "-c", script, str(kernels.library())]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.ENV_KERNELS, "fastest")
    with pytest.raises(SpecError, match="REX_KERNELS: 'fastest'"):
        kernels.library()


def test_without_a_compiler_the_built_in_operators_serve_and_one_line_says_so(tmp_path: Path) -> None:
    program = "import logging; logging.basicConfig(); from rexnet import kernels; " \
        "print(kernels.library(), kernels.digest(), kernels.instruction_set())"  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key not in {"CXX", kernels.ENV_KERNELS}}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | {"PATH": str(tmp_path)}, capture_output=True, text=True,
        check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "None builtin builtin\n"
    assert done.stderr.count("\n") == 1
    assert "no C++ compiler: install g++ or set CXX" in done.stderr


@needs_library
def test_a_second_build_finds_the_first_and_a_failing_one_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = kernels.library()
    assert library is not None
    changed = library.stat().st_mtime_ns
    assert build.build() == library
    assert library.stat().st_mtime_ns == changed
    assert len(kernels.digest()) == 64
    compiler = tmp_path / "broken"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken 1 && exit\necho "x.cc: error: out of luck" >&2; exit 3\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildError, match=r"exits 3: .*out of luck"):
        build.build()
    assert not [path for path in build.cache_folder().iterdir() if path.is_dir()]
