"""The msrun command of a node, as a value."""

from __future__ import annotations

from cluster.launch import LaunchPlan
from cluster.msrun import MsrunCommand, build_msrun

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


def build(**node_env: str) -> MsrunCommand:
    return build_msrun(
        PLAN,
        node_rank=1,
        master_addr="10.0.0.5",
        master_port=8118,
        cpus=(0, 1, 2, 3, 4, 5, 6, 7),
        socket_name="rex-t0k3n-1",
        node_env=node_env,
        python="/opt/venv/bin/python",
    )


def test_command_is_the_recorded_one() -> None:
    command = build()
    *options, shim, kind, module, flag, value = command.argv
    assert options == [
        "/opt/venv/bin/msrun",
        "--worker_num=8",
        "--local_worker_num=4",
        "--node_rank=1",
        "--master_addr=10.0.0.5",
        "--master_port=8118",
        "--log_dir=/scratch/rex/quickstart-abc/attempt-2/node-1/logs",
        "--join=True",
        "--tail_worker_log=8",
    ]
    assert shim.endswith("cluster/shim.py")
    assert (kind, module, flag, value) == ("module", "rexnet.train", "--config", "quickstart")
    assert command.cwd == "/scratch/rex/quickstart-abc/attempt-2/node-1/cwd"


def test_venv_comes_first_on_the_path_because_msrun_runs_whatever_python_it_finds() -> None:
    assert build(PATH="/evil").env["PATH"].startswith("/opt/venv/bin:")
    assert "/evil" not in build(PATH="/evil").env["PATH"]


def test_nothing_is_inherited_by_accident() -> None:
    env = build(
        MY_SECRET="x", HOME="/root", ASCEND_RT_VISIBLE_DEVICES="4,5,6,7", MS_ROLE="MS_SCHED", LD_PRELOAD="y"
    ).env
    assert "MY_SECRET" not in env and "LD_PRELOAD" not in env and "MS_ROLE" not in env
    assert env["HOME"] == "/root" and env["ASCEND_RT_VISIBLE_DEVICES"] == "4,5,6,7"


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
