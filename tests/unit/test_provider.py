"""The provider's word: exit code 0 alone counts, and only what was asked after the host fell silent."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.control.provider import Provider

ADDRESS = "10.0.0.1"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(provider: Provider, host: str, since: float = 0.0) -> bool:
    """What it says once the question that this may have asked is answered."""
    provider.is_gone(host, ADDRESS, since=since)
    deadline = time.monotonic() + 150
    while not provider._asked[host, ADDRESS][1].done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return provider.is_gone(host, ADDRESS, since=since)


def test_exit_code_zero_alone_says_gone(tmp_path: Path) -> None:
    (tmp_path / f"h1-{ADDRESS}").touch()
    marked = Provider(["test", "-e", f"{tmp_path}/{{host}}-{{address}}"])
    assert answer(marked, "h1") and not answer(marked, "h2")
    assert not answer(Provider([str(tmp_path / "no-such-command")]), "h1")
    assert not Provider(None).is_gone("h1", ADDRESS, since=0.0)


def test_word_counts_while_it_is_asked_for_again_and_not_against_a_later_silence(tmp_path: Path) -> None:
    mark, clock = tmp_path / "h1", Clock()
    mark.touch()
    provider = Provider(["test", "-e", f"{tmp_path}/{{host}}"], steady=clock)
    assert answer(provider, "h1", since=999.0)
    clock.now += 60
    assert not provider.is_gone("h1", ADDRESS, since=1030.0), "it was heard after the question, and is silent again"
    assert provider.is_gone("h1", ADDRESS, since=999.0), "nothing was heard of the host since, and it is asked again"
    assert answer(provider, "h1", since=999.0)  # before the mark goes
    mark.unlink()
    clock.now += 60
    assert not answer(provider, "h1", since=1030.0)
    assert not answer(provider, "h1", since=999.0), "the newest answer counts"
