"""What a checkpoint says of what made it; Ascend's part on files as its installers leave them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rexnet.provenance import ascend_versions, code_version, library_versions

DRIVER = "Version=24.1.0\nascendhal_version=7.35.23\naicpu_version=1.0\ntdt_version=1.0\n"
FIRMWARE = "Version=7.5.0.3.220\nfirmware_version=1.0\npackage=Ascend910-firmware\n"
CANN = "package_name=Ascend-cann-toolkit\nversion=8.0.0.beta1\ninnerversion=V100R001C20\narch=aarch64\nos=linux\n"


def test_ascend_versions_are_read_where_installers_leave_them(tmp_path: Path) -> None:
    for name, body in (("driver/version.info", DRIVER), ("firmware/version.info", FIRMWARE),
                       ("ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info", CANN)):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(body)
    expected = {"driver": "24.1.0", "firmware": "7.5.0.3.220", "cann": "8.0.0.beta1"}
    assert ascend_versions(tmp_path, {}) == expected
    elsewhere = {"ASCEND_TOOLKIT_HOME": str(tmp_path / "ascend-toolkit" / "latest")}
    assert ascend_versions(tmp_path, elsewhere) == expected


def test_ascend_versions_that_nobody_left_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "version.info").write_text("nothing of that kind")
    assert set(ascend_versions(tmp_path, {}).values()) == {"unknown"}


def test_cpu_has_no_ascend_versions() -> None:
    versions = library_versions("CPU")
    assert versions["mindspore"] == "2.10.0" and "driver" not in versions


def test_code_version_names_the_commit_of_a_checkout() -> None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    code = code_version()
    assert code["version"]
    if done.returncode == 0:
        assert code["git"] == done.stdout.strip() and code["dirty"] in ("true", "false")
