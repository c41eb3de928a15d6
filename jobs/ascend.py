"""What Ascend's files and tools say, as values: pure parsers, for the nodes' preflight and for a checkpoint's manifest.

Written to Huawei's documentation (installation guides of CANN 8.0, `npu-smi info`) and to outputs that users have
published (`npu-smi` 24.1 to 26.0), not run on hardware by us.
"""

from __future__ import annotations

import re

ROOT = "/usr/local/Ascend"
VERSION_FILES = {"driver": "driver/version.info", "firmware": "firmware/version.info"}  # below ROOT
TOOLKIT_FILE = "*-linux/ascend_toolkit_install.info"  # below ASCEND_TOOLKIT_HOME
UNKNOWN = "unknown"

_VERSION = re.compile(r"^version=(\S+)$", re.IGNORECASE | re.MULTILINE)
# "| 0     910B3               | OK            | ...": number and name, then one word; the next row has a bus id there
_DEVICE = re.compile(r"^\|\s*(\d+)\s+[A-Za-z0-9][\w-]*\s*\|\s*([A-Za-z]+)\s*\|", re.MULTILINE)
_FIT = ("OK", "Warning")


def version_in(text: str) -> str:
    """The value of the line `Version=` or `version=` of an installer's file; "unknown" if there is none."""
    found = _VERSION.search(text)
    return found[1] if found else UNKNOWN


def healths_in(text: str) -> dict[str, str]:
    """Health of each NPU (OK, Warning, Alarm, Critical, UNKNOWN) by its number, from the output of `npu-smi info`.

    Of an NPU with several chips, the first that is not fit counts.
    """
    healths: dict[str, str] = {}
    for number, health in _DEVICE.findall(text):
        if healths.get(number, "OK") == "OK":
            healths[number] = health
    return healths


def unfit(healths: dict[str, str]) -> list[str]:
    """Numbers of the NPUs that npu-smi calls neither OK nor merely worth a warning; not knowing is no verdict."""
    return [number for number, health in healths.items() if health not in _FIT and health.upper() != "UNKNOWN"]
