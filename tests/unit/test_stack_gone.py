"""A state directory that is gone, or never was: nobody but `up` makes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.settings import Home
from orchestrator.stack import Stack


def test_control_plane_starts_no_second_stack_where_its_own_was_removed(tmp_path: Path) -> None:
    """Its folders may be there again, made by a lock or by whoever removes them slowly; the token is not."""
    home = Home(tmp_path / "gone")
    home.create()
    with pytest.raises(FileNotFoundError):
        Stack(home).tend()
    assert {path.name for path in home.run.iterdir()} <= {"stack.lock"}
    assert list(home.logs.iterdir()) == []


def test_down_where_nothing_was_brought_up_makes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "never")
    Stack(home).down()
    assert not home.path.exists()
