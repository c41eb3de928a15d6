"""What a terminal sees while `rexctl checkpoints` reads."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.checkpoints.folders import growing
from orchestrator.cli import main as command_line
from tests.support.chain_cli import Chain, Rexctl


def test_growing_counts_what_is_written_so_far(tmp_path: Path) -> None:
    told: list[int] = []
    seen = threading.Event()

    def note(now: int) -> None:
        told.append(now)
        if now >= 8192:
            seen.set()

    with growing(tmp_path / "state", note):
        with (tmp_path / ".state.123.tmp").open("wb") as file:
            file.write(b"x" * 8192)
            file.flush()
            os.fsync(file.fileno())
        (tmp_path / ".other.123.tmp").write_bytes(b"y" * 10)
        assert seen.wait(30)
    assert set(told) <= {0, 8192}


def drawn_by(monkeypatch: pytest.MonkeyPatch, term: str, streams: tuple[str, ...], *words: str) -> str:
    """What comes to a terminal that stands behind these streams, while `rexctl checkpoints ...` runs."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "argv", ["rexctl", "checkpoints", *words])
    master, slave = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # EIO: the last writer has closed it
            while block := os.read(master, 65536):
                drawn.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        for stream in streams:
            patch.setattr(sys, stream, terminal)
        with pytest.raises(SystemExit):
            command_line.main()
    reader.join()
    os.close(master)
    return b"".join(drawn).decode()


def test_bar_is_for_terminals_alone(
    rexctl: Rexctl, chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = rexctl("verify", chain.uri)
    assert done.err == ""
    drawn = drawn_by(monkeypatch, "xterm", ("stderr",), "verify", chain.uri)
    assert "verifying" in drawn and "KiB" in drawn and "whole" not in drawn
    assert capsys.readouterr().out == done.out  # the results stay on stdout
    assert drawn_by(monkeypatch, "dumb", ("stderr",), "verify", chain.uri) == ""


def test_verdicts_in_a_terminal_stand_above_the_bar(
    rexctl: Rexctl, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rexctl("verify", chain.uri).out.splitlines()
    drawn = drawn_by(monkeypatch, "xterm", ("stdout", "stderr"), "verify", chain.uri)
    assert "verifying" in drawn
    screen = on_screen(drawn)
    assert [line for line in screen if line] == expected


def on_screen(drawn: str) -> list[str]:
    """The lines that a terminal shows at the end, for the few control sequences that bars use."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", drawn):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b["):
            count = int(re.sub(r"\D", "", part) or 1)
            if part.endswith("A"):
                row = max(0, row - count)
            elif part == "\x1b[2K":
                lines[row] = ""
            else:
                assert part[-1] in "mlh", part  # colours, the cursor's look
        else:
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return lines
