"""The provider's word: exit code 0 alone counts, and only for as long as it is fresh."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.control import provider as provider_module
from orchestrator.control.provider import Provider


def answer(provider: Provider, host: str) -> bool:
    """What it says once the question that this may have asked is answered."""
    provider.is_gone(host, "10.0.0.1")
    deadline = time.monotonic() + 30
    while not provider._asked[host, "10.0.0.1"].done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return provider.is_gone(host, "10.0.0.1")


def test_exit_code_zero_alone_says_gone(tmp_path: Path) -> None:
    (tmp_path / "h1-10.0.0.1").touch()
    marked = Provider(["test", "-e", f"{tmp_path}/{{host}}-{{address}}"])
    assert answer(marked, "h1") and not answer(marked, "h2")
    assert not answer(Provider([str(tmp_path / "no-such-command")]), "h1")
    assert not Provider(None).is_gone("h1", "10.0.0.1")


def test_word_of_an_hour_ago_counts_for_nothing_of_a_host_that_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "h1"
    mark.touch()
    provider = Provider(["test", "-e", f"{tmp_path}/{{host}}"])
    assert answer(provider, "h1")
    mark.unlink()
    now = time.monotonic()
    monkeypatch.setattr(provider_module.time, "monotonic", lambda: now + 3600)
    assert not provider.is_gone("h1", "10.0.0.1"), "it is asked anew"
    monkeypatch.undo()
    assert not answer(provider, "h1")
