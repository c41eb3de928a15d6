"""The msrun command of a node, as a value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.launch import LaunchPlan
from cluster.node.binding import options, problem, shares
from cluster.node.msrun import MsrunCommand, build_msrun
from cluster.preflight.readiness import with_code
from rexnet.world import share_of

RECORDED = Path(__file__).with_name("recorded") / "commands"

PLAN = LaunchPlan(
    job="quickstart-abc",
    attempt=2,
    token="t0k3n",
    nodes=2,
    workers_per_node=4,
    cpus_per_worker=2,
    npus_per_node=4,
    program=("module", "rexnet.train", "--config", "quickstart"),
    env={"REX_STORE": "s3://bucket/quickstart-abc"},
    from_env=("AWS_ACCESS_KEY_ID", "NOT_THERE"),
    work_root="/scratch/rex",
)


CPU_PLAN = replace(PLAN, npus_per_node=0, from_env=(), program=("script", "/opt/count.py"), nodes=1, workers_per_node=2)
NODE = {  # an Ascend node after CANN's set_env.sh, with what people leave lying about in a shell
    "HOME": "/root",
    "PATH": "/home/op/bin:/usr/local/Ascend/ascend-toolkit/latest/compiler/ccec_compiler/bin:/usr/bin",
    "PYTHONPATH": "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages:/home/op/hacks",
    "LD_LIBRARY_PATH": "/usr/local/Ascend/driver/lib64",
    "ASCEND_TOOLKIT_HOME": "/usr/local/Ascend/ascend-toolkit/latest",
    "ASCEND_OPP_PATH": "/usr/local/Ascend/ascend-toolkit/latest/opp",
    "ASCEND_AICPU_PATH": "/usr/local/Ascend/ascend-toolkit/latest",
    "ASCEND_GLOBAL_LOG_LEVEL": "0",
    "ASCEND_RT_VISIBLE_DEVICES": "7,6,4,5",
    "HCCL_WHITELIST_DISABLE": "1",
    "HCCL_RDMA_TC": "132",
    "HCCL_DETERMINISTIC": "true",
    "HCCL_EXEC_TIMEOUT": "17340",
    "MS_DEV_JIT_SYNTAX_LEVEL": "0",
    "MS_ROLE": "MS_SCHED",
    "GLOO_SOCKET_IFNAME": "eth9",
}


def build(plan: LaunchPlan = PLAN, /, *, interface: str | None = None, **node_env: str) -> MsrunCommand:
    return build_msrun(
        plan,
        node_rank=1 if plan.nodes > 1 else 0,
        master_addr="10.0.0.5",
        master_port=23118,
        cpus=(0, 1, 2, 3, 4, 5, 6, 7),
        socket_name="rex-t0k3n-1",
        node_env=node_env,
        interface=interface,
        hccl_base_port=24000 if plan.npus_per_node else None,
        numa_of={cpu: cpu // 4 for cpu in range(8)},
        python="/opt/venv/bin/python",
    )


def printed(command: MsrunCommand) -> str:
    """One assignment or word a line, without the place of our own checkout."""
    *options, shim, kind = command.argv[: command.argv.index("module" if "module" in command.argv else "script") + 1]
    rest = command.argv[len(options) + 2 :]
    words = [*options, "SHIM" if shim.endswith("/cluster/node/shim.py") else shim, kind, *rest]
    return "\n".join([f"cd {command.cwd}", *(f"{k}={v}" for k, v in sorted(command.env.items())), *words]) + "\n"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cpu", build(CPU_PLAN, HOME="/root", MS_DEV_JIT_SYNTAX_LEVEL="0", ASCEND_RT_VISIBLE_DEVICES="")),
        ("cpu-cores", build(replace(CPU_PLAN, bind="cores"))),
        ("ascend", build(replace(PLAN, bind="numa", start_timeout_s=1200.0), interface="eth1", **NODE)),
    ],
)
def test_command_and_its_environment_are_the_recorded_ones(name: str, command: MsrunCommand) -> None:
    path = RECORDED / f"{name}.txt"
    if os.environ.get("REX_RECORD") == "1":
        path.write_text(printed(command))
    assert printed(command) == path.read_text(), "REX_RECORD=1 writes it anew: read the difference before you commit"


def test_venv_comes_first_on_the_path_because_msrun_runs_whatever_python_it_finds() -> None:
    assert build(PATH="/evil").env["PATH"].startswith("/opt/venv/bin:")
    assert "/evil" not in build(PATH="/evil").env["PATH"]


def test_nothing_is_inherited_by_accident() -> None:
    env = build(**NODE, MY_SECRET="x", LD_PRELOAD="y").env
    for name in ("MY_SECRET", "LD_PRELOAD", "MS_ROLE", "MS_DEV_JIT_SYNTAX_LEVEL", "HCCL_DETERMINISTIC"):
        assert name not in env
    assert env["HOME"] == "/root" and env["HCCL_WHITELIST_DISABLE"] == "1"
    assert env["ASCEND_RT_VISIBLE_DEVICES"] == "4,5,6,7", "those that Ray gave, in CANN's only order"
    assert env["HCCL_EXEC_TIMEOUT"] == "1836", "not the node's"


def test_brought_code_and_the_jobs_own_modules_come_before_canns() -> None:
    cann = "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages"
    brought = replace(PLAN, code_roots=("", "/code/x"))
    mine = replace(brought, env={"PYTHONPATH": "/mine"})
    on_node = {**NODE, "PYTHONPATH": f"/code/x:{NODE['PYTHONPATH']}"}  # as Ray starts an agent there
    assert build(with_code(brought, 1), **on_node).env["PYTHONPATH"] == f"/code/x:{cann}"
    assert build(with_code(mine, 1), **on_node).env["PYTHONPATH"] == f"/code/x:/mine:{cann}"
    assert build(replace(PLAN, env={"PYTHONPATH": "/mine"}), **NODE).env["PYTHONPATH"] == f"/mine:{cann}"
    named = replace(brought, from_env=("PYTHONPATH",))
    assert build(with_code(named, 1), **on_node).env["PYTHONPATH"] == f"/code/x:{cann}:/home/op/hacks"


def test_cann_writes_its_logs_to_the_attempts_folder() -> None:
    name = "ASCEND_PROCESS_LOG_PATH"
    assert build(**{**NODE, name: "/home/op/ascend"}).env[name] == "/scratch/rex/quickstart-abc/attempt-2/node-1/plog"
    assert build(replace(PLAN, env={name: "/mine"}), **NODE).env[name] == "/mine"


def test_ranks_get_devices_and_cpus_in_the_same_order() -> None:
    command = build(replace(PLAN, bind="cores"), **NODE)
    (table,) = (word.partition("=")[2] for word in command.argv if word.startswith("--bind_core="))
    assert list(json.loads(table)) == [f"device{n}" for n in command.env["ASCEND_RT_VISIBLE_DEVICES"].split(",")]


def test_nothing_of_ascend_reaches_a_cpu_job() -> None:
    assert not [name for name in build(CPU_PLAN, **NODE).env if name.startswith(("ASCEND_", "HCCL_"))]


def test_jobs_own_variables_win_over_what_we_derive() -> None:
    mine = {"HCCL_EXEC_TIMEOUT": "3400", "HCCL_SOCKET_IFNAME": "ib", "MS_NODE_TIMEOUT": "15"}
    env = build(replace(PLAN, env=mine), interface="eth1", **NODE).env
    assert {name: env[name] for name in mine} == mine


def test_mindspore_waits_for_a_silent_peer_no_shorter_than_the_lease() -> None:
    assert build(replace(PLAN, lease_s=90.0)).env["MS_NODE_TIMEOUT"] == "90"
    assert build(replace(PLAN, lease_s=5.0)).env["MS_NODE_TIMEOUT"] == "30"


def test_binding_names_workers_by_the_visible_devices_in_their_order() -> None:
    argv = build(replace(PLAN, bind="cores"), **NODE).argv
    assert '--bind_core={"device4": ["0,1"], "device5": ["2,3"], "device6": ["4,5"], "device7": ["6,7"]}' in argv


def test_binding_is_what_msrun_itself_accepts() -> None:
    """msrun's own parser and check of the table, on this machine's CPUs."""
    chosen = options("cores", cpus=(0,), workers=2, devices=(), numa_of={})
    code = (
        "import json, sys\n"
        "from mindspore.parallel.cluster.run import _parse_and_validate_bind_core as parse\n"
        "from mindspore.parallel.cluster.process_entity._bind import _parse_global_device_to_cpu_map as table\n"
        "given = parse(sys.argv[1].partition('=')[2])\n"
        "print(json.dumps([table(0, 0, given), table(1, 1, given)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *chosen], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == ["0", "0"]


def test_numa_binding_without_known_nodes_binds_cores_only() -> None:
    assert len(options("numa", cpus=(0, 1), workers=2, devices=(), numa_of={})) == 1
    assert options("numa", cpus=(0, 5), workers=2, devices=(), numa_of={0: 0, 5: 1})[1] == (
        '--bind_numa={"device0": ["0"], "device1": ["1"]}'
    )


def test_host_on_which_msrun_would_not_bind_is_named(tmp_path: Path) -> None:
    assert problem("none", "n1", cpuset=tmp_path / "missing") is None
    assert "cgroup v1" in str(problem("cores", "n1", cpuset=tmp_path / "missing"))
    assert str(problem("cores", "n1", cpuset=tmp_path / "missing")).count("n1") == 1


def test_shares_are_those_that_rexnet_takes() -> None:
    for cpus, workers in (((0, 1, 2, 3), 2), ((4, 5, 6), 2), ((0, 1), 4)):
        mine = [list(share_of(list(cpus), rank, workers)) for rank in range(workers)]
        assert shares(cpus, workers) == mine


def test_credentials_come_from_the_nodes_own_environment_by_name() -> None:
    env = build(AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY="not named").env
    assert env["AWS_ACCESS_KEY_ID"] == "id"
    assert "AWS_SECRET_ACCESS_KEY" not in env and "NOT_THERE" not in env
    assert "id" not in PLAN.to_json().split('"')


def test_attempt_and_token_are_in_every_workers_environment() -> None:
    env = build().env
    assert (env["REX_JOB"], env["REX_ATTEMPT"], env["REX_TOKEN"]) == ("quickstart-abc", "2", "t0k3n")
    assert env["REX_CPUS"] == "0,1,2,3,4,5,6,7"


def test_plan_survives_its_journey_as_json() -> None:
    assert LaunchPlan.from_json(PLAN.to_json()) == PLAN
