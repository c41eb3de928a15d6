"""The entry point: what is nobody's mistake in a job file is one sentence, too."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from orchestrator.cli import main as entry


def test_job_store_that_does_not_answer_is_told_in_one_sentence_and_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A control plane that was stopped in the middle of a write holds its lock for as long."""

    def locked() -> None:
        raise OperationalError("BEGIN IMMEDIATE", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr(entry, "app", locked)
    with pytest.raises(SystemExit) as left:
        entry.main()
    said = capsys.readouterr().err
    assert left.value.code == 3 and said.count("\n") == 1
    assert "the job store does not answer: database is locked" in said and "a bug" not in said


def test_other_exceptions_are_called_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(entry, "app", broken)
    with pytest.raises(SystemExit) as left:
        entry.main()
    assert left.value.code == 3 and "a bug: ZeroDivisionError" in capsys.readouterr().err
