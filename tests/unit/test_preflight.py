"""What a node says of itself, on this machine and on recorded outputs of Ascend's tools (not run on its hardware)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.launch import LaunchPlan
from cluster.node import supervisor
from cluster.node.released import START_FILE
from cluster.preflight import code, facts
from cluster.preflight.in_use import hold_code
from cluster.preflight.readiness import can_import, why_not_ready, with_code
from jobs import ascend
from jobs.contract import Exit

ONE_CHIP = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B1               | OK            | 93.1        36                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3418 / 65536         |
+===========================+===============+====================================================+
| 1     910B1               | Critical      | 92.2        37                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3405 / 65536         |
+===========================+===============+====================================================+
| 2     910B1               | Warning       | 93.1        34                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          3405 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
+===========================+===============+====================================================+
| 1       0                 | 4711          | python                   | 3405                    |
+===========================+===============+====================================================+
"""
TWO_CHIPS = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 166.5       38                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3131 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | Alarm         | -           37                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2886 / 65536         |
+===========================+===============+====================================================+
| 1     Ascend910           | UNKNOWN       | 168.1       37                0    / 0             |
| 0     2                   | 0000:99:00.0  | 0           0    / 0          3125 / 65536         |
"""


def test_health_of_each_npu_is_read_and_only_definite_trouble_counts() -> None:
    assert ascend.healths_in(ONE_CHIP) == {"0": "OK", "1": "Critical", "2": "Warning"}
    assert ascend.unfit(ascend.healths_in(ONE_CHIP)) == ["1"]
    assert ascend.healths_in(TWO_CHIPS) == {"0": "Alarm", "1": "UNKNOWN"}
    assert ascend.unfit(ascend.healths_in(TWO_CHIPS)) == ["0"]
    assert ascend.healths_in("npu-smi: command failed") == {}


def test_npu_smi_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "npu-smi"
    command.write_text(f"#!/bin/sh\n[ \"$1\" = info ] && cat <<'END'\n{ONE_CHIP}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(facts, "_NPU_SMI_TIMEOUT_S", 120.0)
    assert facts.npu_healths() == {"0": "OK", "1": "Critical", "2": "Warning"}
    command.write_text("#!/bin/sh\nexit 1\n")
    assert facts.npu_healths() == {}


def test_ascend_versions_are_read_and_a_node_without_a_driver_has_none(tmp_path: Path) -> None:
    assert facts.ascend_versions(tmp_path, {}) == {}
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "version.info").write_text("Version=24.1.0\nascendhal_version=7.35.23\n")
    toolkit = tmp_path / "cann" / "aarch64-linux"
    toolkit.mkdir(parents=True)
    (toolkit / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=8.0.0.beta1\n")
    seen = facts.ascend_versions(tmp_path, {"ASCEND_TOOLKIT_HOME": str(tmp_path / "cann")})
    assert seen == {"driver": "24.1.0", "firmware": "unknown", "cann": "8.0.0.beta1"}


def test_facts_of_this_machine(tmp_path: Path) -> None:
    seen = facts.gather(str(tmp_path / "work"))
    assert seen["host"] == socket.gethostname() and seen["unwritable"] == ""
    assert seen["packages"]["mindspore"] == metadata.version("mindspore")
    assert seen["incarnation"] == facts.incarnation() != ""
    assert seen["code"] == code.read_code().digest
    assert seen["free_bytes"] > 0 and (tmp_path / "work").is_dir()


def test_work_root_that_cannot_be_made_is_said_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen = facts.gather(str(tmp_path / "file" / "work"))
    assert seen["unwritable"] == "Not a directory" and seen["free_bytes"] > 0


def test_lock_changes_with_any_version() -> None:
    assert facts.lock_digest({"a": "1", "b": "2"}) == facts.lock_digest({"b": "2", "a": "1"})
    assert facts.lock_digest({"a": "1", "b": "2"}) != facts.lock_digest({"a": "1", "b": "3"})


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    for name in facts.PACKAGES:
        (tmp_path / "ours" / name).mkdir(parents=True)
        (tmp_path / "ours" / name / "__init__.py").write_text(f"NAME = '{name}'\n")
    return code.folders_below(tmp_path / "ours")


def test_digest_changes_with_content_and_name_and_not_with_what_is_built(packages: dict[str, Path]) -> None:
    before = facts.code_digest(packages)
    (packages["rexnet"] / "kernels.so").write_bytes(b"built")
    assert facts.code_digest(packages) == before
    (packages["rexnet"] / "__init__.py").rename(packages["rexnet"] / "other.py")
    renamed = facts.code_digest(packages)
    (packages["rexnet"] / "other.py").write_text("NAME = 'changed'\n")
    assert len({before, renamed, facts.code_digest(packages)}) == 3
    assert facts.code_digest({"jobs": packages["jobs"]}) == "", "a package is missing"


def test_unpacked_code_has_the_digest_of_what_was_read_and_is_unpacked_once(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    ours = code.read_code(packages)
    root = Path(code.unpack(ours.archive, ours.digest, str(tmp_path / "work")))
    assert root == tmp_path / "work" / "code" / ours.digest
    assert facts.code_digest(code.folders_below(root)) == ours.digest
    assert code.unpack(b"not needed", ours.digest, str(tmp_path / "work")) == str(root)
    assert [path.name for path in root.parent.iterdir()] == [ours.digest]
    assert code.read_code(packages) == ours


def aged(folder: Path, days: float) -> Path:
    """A folder beside unpacked code, last asked for so long ago."""
    (folder / "cluster").mkdir(parents=True)
    (folder / "cluster" / "__init__.py").write_text("")
    at = time.time() - days * 86400
    os.utime(folder, (at, at))
    return folder


def runs_from(root: Path) -> subprocess.Popen[bytes]:
    """A process that holds that code until it is killed."""
    script = (
        "import sys; from cluster.preflight import in_use; in_use.hold_code(sys.argv[1]); print(flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(root)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    return holder


def test_code_that_nobody_has_used_for_a_day_goes_and_what_somebody_runs_from_stays(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    ours = code.read_code(packages)
    root = Path(code.unpack(ours.archive, ours.digest, str(tmp_path)))
    old, recent = aged(root.parent / ("1" * 64), 1.5), aged(root.parent / ("2" * 64), 0.5)
    used, orphan = aged(root.parent / ("3" * 64), 30), aged(root.parent / ".unpacking-x", 2)
    (root.parent / "note").write_text("not ours to remove")
    with runs_from(used) as holder:
        code.unpack(ours.archive, ours.digest, str(tmp_path))
        assert sorted(root.parent.iterdir()) == sorted([root, recent, used, root.parent / "note"])
        assert not old.exists() and not orphan.exists()
        holder.kill()
    code.unpack(ours.archive, ours.digest, str(tmp_path))
    assert not used.exists() and recent.exists()


def test_code_that_is_asked_for_is_as_new_as_the_question(packages: dict[str, Path], tmp_path: Path) -> None:
    """The census asks every five minutes; else the one in use would look as old as its first unpacking."""
    ours = code.read_code(packages)
    root = Path(code.unpack(ours.archive, ours.digest, str(tmp_path)))
    os.utime(root, (1.0, 1.0))
    code.unpack(b"not needed", ours.digest, str(tmp_path))
    assert time.time() - root.stat().st_mtime < 3600
    code.remove_unused(root.parent, keep="another digest")
    assert root.is_dir()


def test_supervisor_holds_the_code_that_was_brought_to_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HeldError(Exception):
        pass

    def hold(root: str) -> None:
        raise HeldError(root)  # far enough for this test

    plan = launch(tmp_path, nodes=2, code_roots=("", "/code/x"))
    start = {"plan": plan.to_json(), "node_rank": 1, "master_addr": "a", "master_port": 1}
    (tmp_path / START_FILE).write_text(json.dumps(start))
    monkeypatch.setattr(supervisor, "hold_code", hold)
    with pytest.raises(HeldError, match=r"^/code/x$"):
        supervisor._supervise(tmp_path, cast(Any, None), [])


def test_holding_no_code_or_one_that_is_gone_is_no_error(tmp_path: Path) -> None:
    hold_code("")
    hold_code(str(tmp_path / "gone"))


def test_what_runs_on_a_node_with_older_code_brings_its_own_functions(tmp_path: Path) -> None:
    """Pickled by value, as `cluster.gang` does: run where none of our packages can be imported."""
    import ray

    import cluster.gang  # noqa: F401 - registers what is pickled by value

    pickled = tmp_path / "unpack"
    pickled.write_bytes(ray.cloudpickle.dumps(code.remove_unused))
    gone, kept = aged(tmp_path / "code" / "old", 2), aged(tmp_path / "code" / "new", 0)
    script = (
        "import pickle, sys; from pathlib import Path\n"
        "for name in ('cluster', 'jobs', 'rexnet'): sys.modules[name] = None\n"
        "pickle.loads(Path(sys.argv[1]).read_bytes())(Path(sys.argv[2]), keep='none')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(pickled), str(tmp_path / "code")], check=True, cwd="/")
    assert kept.is_dir() and not gone.exists()


def test_damaged_code_is_unpacked_anew_and_what_is_not_as_said_is_refused(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    ours = code.read_code(packages)
    root = Path(code.unpack(ours.archive, ours.digest, str(tmp_path)))
    (root / "jobs" / "__init__.py").write_text("")
    assert code.unpack(ours.archive, ours.digest, str(tmp_path)) == str(root)
    assert facts.code_digest(code.folders_below(root)) == ours.digest
    with pytest.raises(OSError, match="does not hold what was sent"):
        code.unpack(ours.archive, "0" * 64, str(tmp_path))


def launch(tmp_path: Path, **changes: object) -> LaunchPlan:
    plan = {
        "job": "j",
        "attempt": 1,
        "token": "t",
        "nodes": 1,
        "workers_per_node": 1,
        "cpus_per_worker": 1,
        "npus_per_node": 0,
        "program": ("script", __file__),
        "work_root": str(tmp_path),
    }
    return LaunchPlan(**{**plan, **changes})  # type: ignore[arg-type]


def test_node_that_has_all_that_the_attempt_needs_is_ready(tmp_path: Path) -> None:
    plan = launch(tmp_path, data_dir=str(tmp_path), min_free_bytes=1, code=code.read_code().digest)
    assert why_not_ready(plan, 0) is None


@pytest.mark.parametrize(
    ("changes", "said", "code_said"),
    [
        ({"data_dir": "/no/data"}, "data.dir /no/data on HOST: No such file or directory", Exit.CONFIG),
        ({"data_dir": __file__}, f"data.dir {__file__} on HOST: not a directory", Exit.CONFIG),
        ({"program": ("script", "/no.py")}, "program.script /no.py on HOST: No such file or directory", Exit.CONFIG),
        (
            {"program": ("module", "rexnet.trian")},
            "program.module rexnet.trian on HOST: not installed there",
            Exit.CONFIG,
        ),
        ({"code": "0" * 64}, "than the control plane (000000000000)", Exit.INFRASTRUCTURE),
        ({"min_free_bytes": 1 << 60}, "of min_free_disk_gib", Exit.INFRASTRUCTURE),
    ],
)
def test_what_a_node_lacks_is_one_sentence_that_names_it(
    tmp_path: Path, changes: dict[str, object], said: str, code_said: Exit
) -> None:
    lack = why_not_ready(launch(tmp_path, **changes), 0)
    assert lack is not None and lack[1] is code_said
    assert said.replace("HOST", socket.gethostname()) in lack[0] and socket.gethostname() in lack[0]


def test_node_on_which_ray_gives_no_devices_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES any two attempts would use the same."""
    plan = launch(tmp_path, npus_per_node=2)
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    lack = why_not_ready(plan, 0)
    assert lack is not None and lack[1] is Exit.INFRASTRUCTURE
    assert lack[0] == (
        f"ASCEND_RT_VISIBLE_DEVICES is not set on {socket.gethostname()}, where Ray was to give the attempt 2 NPUs of "
        "its own: start Ray there without RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES"
    )
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "7,3")
    assert why_not_ready(plan, 0) is None


def test_file_server_that_does_not_answer_is_not_the_jobs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stale(path: object, **options: object) -> os.stat_result:
        if str(path) == "/mnt/data":
            raise OSError(116, "Stale file handle")
        return real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stale)
    lack = why_not_ready(launch(tmp_path, data_dir="/mnt/data"), 0)
    assert lack == (f"data.dir /mnt/data on {socket.gethostname()}: Stale file handle", Exit.INFRASTRUCTURE)


def test_module_is_found_without_being_imported(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "pack" / "train.py").write_text("")
    assert can_import("pack.train", str(tmp_path)) and not can_import("pack.train")
    assert can_import("json.tool") and not can_import("json.tool.x") and not can_import("json.nothing")


def test_brought_code_comes_first_on_the_programs_path(tmp_path: Path) -> None:
    plan = launch(tmp_path, nodes=2, code_roots=("", "/code/x"), env={"PYTHONPATH": "/mine"})
    assert with_code(plan, 0).env["PYTHONPATH"] == "/mine"
    assert with_code(plan, 1).env["PYTHONPATH"] == "/code/x:/mine"
    assert LaunchPlan.from_json(plan.to_json()) == plan
