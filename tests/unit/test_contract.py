"""The contract's records, and the sender that must never hold training up."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from jobs.contract import Heartbeat, HeartbeatSender, Outcome, Report, write_report


def test_heartbeat_survives_json_and_added_fields() -> None:
    beat = Heartbeat(rank=1, step=5, checkpoint={"manifest": "m", "step": 4, "sha256": "0"}, seconds={"training": 1.5})
    assert Heartbeat.from_json(beat.to_json()) == beat
    assert Heartbeat.from_dict({**json.loads(beat.to_json()), "of_a_later_version": 1}) == beat


def test_sender_without_a_supervisor_does_nothing() -> None:
    assert HeartbeatSender("").send("heartbeat", Heartbeat(rank=0)) is False


def test_sender_does_not_care_whether_anybody_listens() -> None:
    sender = HeartbeatSender("rex-test-nobody-listens")
    assert sender.send("heartbeat", Heartbeat(rank=0)) is False
    sender.close()


def test_sender_drops_rather_than_blocks_when_nobody_reads() -> None:
    name = f"rex-test-{id(object())}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind("\0" + name)
        sender = HeartbeatSender(name)
        taken = [sender.send("heartbeat", Heartbeat(rank=0, step=step)) for step in range(100_000)]
        assert taken[0] is True and taken[-1] is False
        assert json.loads(inbox.recv(65536))["kind"] == "heartbeat"
    sender.close()


def test_report_is_whole_or_not_there(tmp_path: Path) -> None:
    write_report(tmp_path, Report(heartbeat={"step": 3}, reason="asked to stop"), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["rank_2.json"]
    assert Report.from_json((tmp_path / "rank_2.json").read_text()).reason == "asked to stop"


def test_report_that_cannot_be_written_does_not_fail_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path / "gone", Report(heartbeat={}), 2)
    assert "rank_2.json cannot be written" in capsys.readouterr().err


def test_outcome_tells_code_or_signal() -> None:
    outcome = Outcome(rank=0, pid=7, code=None, signal=9)
    assert Outcome.from_json(outcome.to_json()) == outcome
