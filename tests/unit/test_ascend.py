"""Environment of Ascend workers, and `npu-smi info` read from other people's outputs (tests/unit/recorded/npu-smi)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.ascend import devices, devices_in_use, environment, misgiven, tool_path, visible_devices

RECORDED = Path(__file__).with_name("recorded") / "npu-smi"


def said(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def test_one_chip_to_an_npu_the_device_is_the_npu() -> None:
    assert [device.id for device in devices(said("910B3"))] == list(range(8))
    assert devices_in_use(said("910B3")) == {2: (1333928,)}
    assert {device.health for device in devices(said("910B3"))} == {"OK"}


def test_two_chips_to_an_npu_the_device_is_the_chips_number_among_all() -> None:
    assert [device.id for device in devices(said("910C"))] == list(range(16))
    assert devices_in_use(said("910C")) == {
        0: (3325989, 3330598, 3328327, 3333165),
        1: (3328327,),
        2: (3330598,),
        3: (3333165,),
        12: (3085960, 3085961, 3085962, 3085964),
        13: (3085961,),
        14: (3085962,),
        15: (3085964,),
    }


def test_narrower_table_of_an_older_driver_is_read_too() -> None:
    assert devices_in_use(said("910ProB")) == {0: (55115,)}


def test_device_in_alarm_is_told() -> None:
    broken = said("910B3").replace("| 5     910B3               | OK   ", "| 5     910B3               | Alarm", 1)
    assert [device.id for device in devices(broken) if device.health != "OK"] == [5]


@pytest.mark.parametrize(
    "text", ["", "dcmi module initialize failed. ret is -8005", said("910B3").split("| NPU     Chip")[0]]
)
def test_output_without_devices_or_processes_is_not_taken_for_free(text: str) -> None:
    with pytest.raises(ValueError, match="npu-smi"):
        devices_in_use(text)


def test_devices_are_those_that_ray_gave_in_msruns_order() -> None:
    assert visible_devices({"ASCEND_RT_VISIBLE_DEVICES": "6,4,5,7"}) == (4, 5, 6, 7)
    assert visible_devices({}) == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("6,4", None),
        (None, "ASCEND_RT_VISIBLE_DEVICES is not set"),
        ("", "ASCEND_RT_VISIBLE_DEVICES is ''"),
        ("0,1,2,3", "ASCEND_RT_VISIBLE_DEVICES is '0,1,2,3'"),
        ("4,4", "ASCEND_RT_VISIBLE_DEVICES is '4,4'"),
        ("NoDevFiles", "ASCEND_RT_VISIBLE_DEVICES is 'NoDevFiles'"),
    ],
)
def test_devices_that_are_not_the_attempts_own_are_told(given: str | None, said: str | None) -> None:
    node_env = {} if given is None else {"ASCEND_RT_VISIBLE_DEVICES": given}
    assert misgiven(node_env, 2) == said


def test_time_to_connect_covers_the_start_and_a_collective_is_given_no_less() -> None:
    for start_s, connect, execute in ((10, 120, 1836), (600, 600, 1836), (3000, 3000, 3128), (99999, 7200, 7276)):
        env = environment({}, interface=None, base_port=None, start_timeout_s=start_s, log_dir="/plog")
        assert (env["HCCL_CONNECT_TIMEOUT"], env["HCCL_EXEC_TIMEOUT"]) == (str(connect), str(execute))


def test_of_the_nodes_paths_only_canns_own_are_taken() -> None:
    node = {
        "ASCEND_TOOLKIT_HOME": "/usr/local/Ascend/ascend-toolkit/latest",
        "PYTHONPATH": "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages:/home/me/hacks",
        "PATH": "/home/me/bin:/usr/local/Ascend/ascend-toolkit/latest/compiler/ccec_compiler/bin:/usr/bin",
    }
    env = environment(node, interface="eth1", base_port=23000, start_timeout_s=600, log_dir="/plog")
    assert env["PYTHONPATH"] == "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages"
    assert (env["HCCL_SOCKET_IFNAME"], env["HCCL_IF_BASE_PORT"]) == ("=eth1", "23000")
    assert tool_path(node) == ["/usr/local/Ascend/ascend-toolkit/latest/compiler/ccec_compiler/bin"]
    assert tool_path({"PATH": "/usr/bin"}) == []
