"""Choosing, holding and freeing the master port and the address at which nodes meet; what a node must release."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.node.ending import outcomes_on_disk
from cluster.node.endpoint import (
    HeldPort,
    Interface,
    candidate_ports,
    choose,
    free_ports,
    hold_port,
    interfaces,
    port_is_free,
)
from cluster.node.released import START_FILE, left, read_record, released, write_start
from jobs.errors import SpecError

LOOP, ETH0, ETH1 = Interface("lo", "127.0.0.1"), Interface("eth0", "10.0.0.5"), Interface("eth1", "192.168.7.5")
KNOWN = [LOOP, ETH0, Interface("eth0", "fd00::5"), ETH1]
SMI = (Path(__file__).with_name("recorded") / "npu-smi" / "910B3.txt").read_text()


def sysctl(folder: Path, ephemeral: str, reserved: str = "") -> Path:
    (folder / "ip_local_port_range").write_text(ephemeral + "\n")
    (folder / "ip_local_reserved_ports").write_text(reserved + "\n")
    return folder


@pytest.fixture
def held() -> Iterator[HeldPort]:
    port = hold_port("127.0.0.1")
    yield port
    port.release()


def test_ports_lie_outside_the_kernels_range_and_what_is_reserved(tmp_path: Path) -> None:
    spans = candidate_ports(sysctl(tmp_path, "32768\t60999", "25000,60000-60031,61000-61999"))
    assert spans == [range(20000, 25000), range(25001, 32768), range(62000, 65536)]


def test_kernels_range_is_used_where_it_leaves_nothing_else(tmp_path: Path) -> None:
    assert candidate_ports(sysctl(tmp_path, "1024 65535")) == [range(20000, 65536)]


def test_chosen_port_is_no_candidate_for_outgoing_connections(held: HeldPort) -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not low <= held.port <= high


def test_held_port_is_kept_from_others_but_not_from_msruns_scheduler(held: HeldPort) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", held.port))
    with socket.socket() as scheduler:  # MindSpore's server sets SO_REUSEADDR
        scheduler.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        scheduler.bind(("127.0.0.1", held.port))
        scheduler.listen()
        assert not port_is_free("127.0.0.1", held.port)
    assert port_is_free("127.0.0.1", held.port)


def test_address_of_another_machine_has_no_taken_port_here() -> None:
    assert port_is_free("203.0.113.77", 22222)


def test_ports_in_a_row_are_all_free() -> None:
    first = free_ports("127.0.0.1", 32)
    assert first + 32 <= 65552 and all(port_is_free("127.0.0.1", first + i) for i in range(32))


@pytest.mark.parametrize(
    ("wanted", "found"), [(None, ETH0), ("eth1", ETH1), ("eth0", ETH0), ("192.168.0.0/16", ETH1), ("10.0.0.5/24", ETH0)]
)
def test_interface_is_the_one_of_rays_address_or_the_one_asked_for(wanted: str | None, found: Interface) -> None:
    assert choose(wanted, default="10.0.0.5", nodes=2, host="n1", known=KNOWN) == found


@pytest.mark.parametrize(
    ("wanted", "default", "said"),
    [
        ("ib0", "10.0.0.5", "n1 has no interface ib0"),
        ("172.16.0.0/12", "10.0.0.5", "n1 has no address in gang.interface 172.16.0.0/12"),
        (None, "203.0.113.9", "n1 has no interface with the address 203.0.113.9"),  # NAT
        (None, "127.0.0.1", "n1 would meet the other nodes at 127.0.0.1, which they cannot reach"),
        ("lo", "10.0.0.5", "n1 would meet the other nodes at 127.0.0.1"),
    ],
)
def test_address_that_others_cannot_reach_is_refused_with_what_there_is(
    wanted: str | None, default: str, said: str
) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        choose(wanted, default=default, nodes=2, host="n1", known=KNOWN)
    assert "eth1 192.168.7.5" in str(caught.value) and "gang.interface" in str(caught.value)


def test_single_node_may_meet_itself_on_loopback() -> None:
    assert choose(None, default="127.0.0.1", nodes=1, host="n1", known=KNOWN) == LOOP


def test_this_machines_own_interfaces_are_found() -> None:
    assert any(entry.address == "127.0.0.1" for entry in interfaces())


# -- what a node must have released


def start(folder: Path, port: int, devices: list[int]) -> Path:
    facts = {"master_addr": "127.0.0.1", "master_port": port, "devices": devices}
    (folder / START_FILE).write_text(json.dumps(facts))
    return folder


def test_listener_on_the_master_port_holds_up_the_next_attempt(tmp_path: Path) -> None:
    with socket.socket() as escaped:
        escaped.bind(("127.0.0.1", 0))
        escaped.listen()
        folder = start(tmp_path, escaped.getsockname()[1], [])
        record = released(folder, 0)
        assert record["port_free"] is False and "port" in left(record)
        assert released(folder, 1)["port_free"] is None  # another node's address
    assert released(folder, 0)["port_free"] is True and left(released(folder, 0)) == {}


def test_port_that_somebody_else_had_all_along_is_not_waited_for(tmp_path: Path) -> None:
    recorded = json.loads((Path(__file__).with_name("recorded") / "exits" / "port_taken.json").read_text())
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "outcome_-1.json").write_text(json.dumps(recorded["outcomes"][0]))
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()
        assert left(released(start(tmp_path, theirs.getsockname()[1], []), 0)) == {}


def answers(*texts: str) -> Any:
    pending = list(texts)
    return lambda: pending.pop(0) if len(pending) > 1 else pending[0]


def test_device_is_waited_for_until_the_driver_lets_it_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.node.released._LOOK_S", 0.0)
    monkeypatch.setattr("cluster.node.released._WAIT_S", 600.0)
    free = SMI.replace("| 2       0                 | 1333928       |", "| No running processes found in NPU 2      |")
    record = released(start(tmp_path, 1, [2, 3]), 1, ask=answers(SMI, SMI, free))
    assert record["devices_busy"] == {} and left(record) == {}


def test_device_that_stays_held_is_named_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.node.released._WAIT_S", 0.0)
    record = released(start(tmp_path, 1, [2, 3]), 1, ask=lambda: SMI)
    assert left(record) == {"devices": {"2": [1333928]}}
    assert left(released(start(tmp_path, 1, [3]), 1, ask=lambda: SMI)) == {}  # not our device


def test_process_that_lives_here_is_somebody_elses_after_the_sweep(tmp_path: Path) -> None:
    text = SMI.replace("1333928", f"{os.getpid():<7}")
    assert released(start(tmp_path, 1, [2]), 1, ask=lambda: text)["devices_busy"] == {}


def test_no_npu_smi_and_one_that_fails_hold_nothing_up_but_the_second_is_told(tmp_path: Path) -> None:
    folder = start(tmp_path, 1, [2])
    assert released(folder, 1, ask=lambda: None) == {"port_free": None, "devices_busy": None}
    record = released(folder, 1, ask=lambda: "dcmi module initialize failed. ret is -8005")
    assert left(record) == {} and "dcmi module" in record["devices_unknown"]


def test_attempt_that_never_started_has_nothing_to_release(tmp_path: Path) -> None:
    assert left(released(tmp_path, 0)) == {}


@pytest.mark.parametrize("damaged", ["", '{"master_addr": "127.', "\0" * 80])
def test_files_that_a_power_cut_left_damaged_keep_no_attempt_from_ending(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "reports").mkdir()
    whole = {"rank": 1, "code": 0, "signal": None, "at": 1.0}
    (tmp_path / "reports" / "outcome_0.json").write_text(damaged)
    (tmp_path / "reports" / "outcome_1.json").write_text(json.dumps(whole))
    (tmp_path / START_FILE).write_text(damaged)
    assert outcomes_on_disk(tmp_path) == {1: whole}
    assert left(released(tmp_path, 0)) == {} and read_record(tmp_path / START_FILE) is None


def test_file_on_a_disk_that_gives_no_answer_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / START_FILE).mkdir()  # reading it is an OSError, as EIO and ESTALE are
    assert read_record(tmp_path / START_FILE) is None and left(released(tmp_path, 0)) == {}


def test_start_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    write_start(tmp_path, {"devices": [1]})
    with pytest.raises(TypeError):
        write_start(tmp_path, {"devices": {1}})
    assert read_record(tmp_path / START_FILE) == {"devices": [1]}


def test_survivor_holds_up_the_next_attempt() -> None:
    assert left({"survivors": [7]}) == {"alive": [7]}
