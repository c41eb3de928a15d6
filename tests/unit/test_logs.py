"""Logs that are written while they are read and cut: nothing twice, nothing lost but what the bound takes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.logs import files as logs
from cluster.logs.files import BLOCK, Chunk, FolderLogs, LogKeeper, log_path, read_chunk, tail_offset

WRITER = """
import sys
for number in range(int(sys.argv[1])):
    print(f"{number:09d} " + "x" * 90, flush=True)
"""
LINE = 101  # bytes


def numbers(data: bytes) -> list[int]:
    return [int(line[:9]) for line in data.splitlines()]


def read_all(path: Path, offset: int = 0, max_bytes: int = 1 << 20) -> list[Chunk]:
    chunks = []
    while True:
        chunk = read_chunk(path, offset, max_bytes)
        chunks.append(chunk)
        offset = chunk.next_offset
        if chunk.end:
            return chunks


def test_writer_faster_than_its_bound_loses_its_middle_alone(tmp_path: Path) -> None:
    """The writer holds msrun's kind of descriptor; a reader follows all the time."""
    path, limit, count = tmp_path / "worker_0.log", 1 << 20, 40_000
    with path.open("w") as output:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(count)], stdout=output)
    keeper, offset, seen, told = LogKeeper([path], limit), 0, b"", []
    ended, at_end = None, False
    while ended is None or not at_end:
        ended = writer.poll()
        told += list(keeper.tend())
        chunk = read_chunk(path, offset, 1 << 18)
        if chunk.offset > offset:
            seen = seen[: seen.rfind(b"\n") + 1] + b"?"  # a line was cut: the next whole one goes on
        seen, offset, at_end = seen + chunk.data, chunk.next_offset, chunk.end
    assert ended == 0
    list(keeper.tend())
    keeper.close()
    assert path.stat().st_size == count * LINE
    assert path.stat().st_blocks * 512 <= limit + BLOCK
    assert len(told) == 1 and "bound" in told[0]
    whole = [int(line[:9]) for line in seen.splitlines() if len(line) == LINE - 1]
    assert whole == sorted(set(whole)) and whole[-1] == count - 1
    kept = read_all(path)
    first = numbers(kept[0].data[: kept[0].data.rfind(b"\n")])
    assert first == list(range(len(first))) and len(first) * LINE > limit // 4 - 2 * LINE
    newest = b"".join(chunk.data for chunk in kept[1:])
    newest = newest[newest.find(b"\n") + 1 :]
    assert numbers(newest) == list(range(count - len(newest) // LINE, count)) and len(newest) > limit // 2


def test_file_system_without_holes_loses_the_old_part_and_keeps_offsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_fallocate", lambda descriptor, mode, offset, size: errno.EOPNOTSUPP)
    path = tmp_path / "worker_0.log"
    with path.open("wb", buffering=0) as log:  # as msrun opens it: it does not append
        keeper = LogKeeper([path], 1 << 20)
        for number in range(20_000):
            log.write(f"{number:09d}\n".encode() * 10)
            if number % 1000 == 0:
                told = list(keeper.tend())
                assert not told or "no holes" in told[-1]
    keeper.close()
    (chunk,) = read_all(path, 0, 4 << 20)
    assert chunk.next_offset == path.stat().st_size == 20_000 * 100
    assert path.stat().st_blocks * 512 <= 1 << 20
    assert numbers(chunk.data)[-1] == 19_999


def test_folder_that_is_removed_is_told_once_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LOOK_S", -1.0)
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "worker_0.log").write_text("x")
    keeper = LogKeeper([folder / "worker_0.log", tmp_path / "msrun.log"], 1 << 20)
    assert list(keeper.tend()) == []
    (folder / "worker_0.log").unlink()
    folder.rmdir()
    (told,) = [*keeper.tend(), *keeper.tend()]
    assert "No such file or directory" in told
    keeper.close()


def test_log_whose_disk_fails_is_told_once_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, flags: int) -> int:
        if path.name == "worker_0.log":
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, flags)

    opened = os.open
    monkeypatch.setattr(os, "open", fails)
    (tmp_path / "worker_1.log").write_text("x" * (2 << 20))
    keeper = LogKeeper([tmp_path / "worker_0.log", tmp_path / "worker_1.log"], 1 << 20)
    told = [*keeper.tend(), *keeper.tend()]
    keeper.close()
    assert [line.split(" ")[0] for line in told] == ["worker_0.log", "worker_1.log"]
    assert "Input/output" in told[0] and "bound" in told[1]


def test_killed_writer_leaves_every_line_that_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "worker_0.log"
    said = tmp_path / "said"
    code = (
        "import os, sys\nsaid = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\nn = 0\n"
        "while True:\n    print(f'{n:09d}', flush=True)\n    n += 1\n    os.pwrite(said, f'{n:09d}'.encode(), 0)\n"
    )
    with path.open("w") as output:
        writer = subprocess.Popen([sys.executable, "-c", code, str(said)], stdout=output)
    keeper = LogKeeper([path], 1 << 17)
    while not path.exists() or path.stat().st_size < 1 << 19:
        list(keeper.tend())
        assert writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert numbers(read_all(path)[-1].data)[-1] >= int(said.read_text()) - 1


def test_reading_in_small_pieces_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "worker_0.log"
    path.write_bytes(b"one\ntwo\nthree")
    assert b"".join(chunk.data for chunk in read_all(path, max_bytes=3)) == b"one\ntwo\nthree"
    assert read_chunk(path, 13, 10) == Chunk(offset=13, data=b"", end=True)
    with pytest.raises(FileNotFoundError):
        read_chunk(tmp_path / "none.log", 0, 1)


def test_zeros_where_holes_are_not_told_read_as_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_next_data", lambda descriptor, offset, size: offset)
    path = tmp_path / "worker_0.log"
    path.write_bytes(b"head\n" + bytes(3 * BLOCK) + b"tail\n")
    chunks = [(chunk.offset, chunk.data) for chunk in read_all(path)]
    assert chunks == [(0, b"head\n"), (5 + 3 * BLOCK, b"tail\n")]


@pytest.mark.parametrize(
    ("text", "count", "begins"),
    [("a\nb\nc\n", 2, 2), ("a\nb\nc", 2, 2), ("a\nb\n", 9, 0), ("", 3, 0), ("a\n", 1, 0), ("a\nb", 1, 2)],
)
def test_tail_begins_at_the_line(tmp_path: Path, text: str, count: int, begins: int) -> None:
    path = tmp_path / "worker_0.log"
    path.write_text(text)
    assert tail_offset(path, count) == begins


def test_tail_of_a_cut_log_ends_at_the_hole(tmp_path: Path) -> None:
    path = tmp_path / "worker_0.log"
    path.write_bytes(b"head\n" + bytes(20 * BLOCK) + b"cut\nwhole\n")
    assert tail_offset(path, 9) == 5 + 20 * BLOCK


def test_names_from_elsewhere_stay_in_the_folder(tmp_path: Path) -> None:
    assert log_path(tmp_path, "msrun.log") == tmp_path / "msrun.log"
    assert log_path(tmp_path, "worker_3.log") == tmp_path / "logs" / "worker_3.log"
    for name in ("../../secret.log", "/etc/passwd", "start.json"):
        with pytest.raises(ValueError, match="no log's name"):
            log_path(tmp_path, name)
    assert FolderLogs(tmp_path).read({"worker_0.log": 0}, 10) == {}


@pytest.fixture
def small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rexdisk") as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", name]
        if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("not run: a disk of its own: needs root and mount")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def test_full_disk_lets_the_rank_write_on_and_is_told(small_disk: Path) -> None:
    path = small_disk / "worker_0.log"
    with path.open("wb", buffering=0) as log:
        keeper = LogKeeper([path], 64 << 20)
        log.write(b"a" * (6 << 20))
        assert list(keeper.tend()) == []
        with (small_disk / "other").open("wb") as other, pytest.raises(OSError, match="No space left"):
            while True:
                other.write(b"b" * (1 << 20))
        told = []
        for _ in range(40):
            assert log.write(b"c" * (1 << 18)) == 1 << 18  # 10 MiB more, where nothing is free
            told += list(keeper.tend())
    keeper.close()
    assert len(told) == 1 and "the disk is full: only its newest 1048576 bytes are kept" in told[0]
    assert path.stat().st_size == 16 << 20
    assert read_all(path)[-1].data.endswith(b"c" * BLOCK)


def test_full_disk_is_told_before_a_log_has_to_give(small_disk: Path) -> None:
    path = small_disk / "worker_0.log"
    path.touch()
    keeper = LogKeeper([path], 64 << 20)
    told = list(keeper.tend())
    with (small_disk / "other").open("wb") as other, pytest.raises(OSError, match="No space left"):
        while True:
            other.write(b"b" * (1 << 20))
    deadline = time.monotonic() + 60
    while not told:
        assert time.monotonic() < deadline
        told = list(keeper.tend())
    assert told == [f"the disk of {small_disk} is full: the ranks' output goes on in the room that was kept for it"]
    keeper.close()
    assert os.statvfs(small_disk).f_bavail > 0


def test_room_kept_free_is_given_back_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "worker_0.log"
    path.write_bytes(b"a" * BLOCK)
    keeper = LogKeeper([path, tmp_path / "never.log"], 1 << 20)
    assert list(keeper.tend()) == []
    reserved = path.stat().st_blocks * 512
    keeper.close()
    assert path.stat().st_size == BLOCK and path.stat().st_blocks * 512 <= 2 * BLOCK < reserved
