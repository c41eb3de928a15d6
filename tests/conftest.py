"""For every test: what could not run is said at the end by name and reason, and is a failure where it must run.

Also the stores that conformance and chaos share, one server of each kind for a process, and the sharing out of the
suite between pytest-xdist's workers.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from cluster.node.processes import descendants, end_by_environment, find_by_environment
from tests.conformance.backends import Backend, MotoServer, aws_environment, make_bucket
from tests.support import schedule
from tests.support.radosgw import ACCESS_KEY, SECRET_KEY, RadosGateway, missing_for_radosgw
from tests.support.signals import end_tidily

end_tidily()
# A slow machine is no bug.
settings.register_profile("rex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rex")

MUST_RUN_ALL = os.environ.get("REX_TEST_ALL") == "1"
ENV_RUN = "PYTEST_RUN_OF_REX"  # in the environment of every process that the run starts, at any depth


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ[ENV_RUN] = uuid.uuid4().hex


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of xdist's workers
        schedule.order(items)


@pytest.hookimpl(tryfirst=True)  # before the fixtures, whose servers inherit it
def pytest_runtest_setup(item: pytest.Item) -> None:
    if hasattr(item.config, "workerinput"):
        schedule.give_way(item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> schedule.PieceScheduling:
    config.option.loadscopereorder = False  # the order of collection counts, not the number of tests
    return schedule.PieceScheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section("not run on this machine", sep="-")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")


@pytest.hookimpl(trylast=True)  # fixtures are down by then, and xdist's workers gone
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workerinput"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if MUST_RUN_ALL and reporter is not None and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    left = _left_behind()
    if left:  # also after a Ctrl-C, when xdist kills its workers before their fixtures are down
        print(f"\nleft behind, and ended now: {left}")
        if exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left_behind() -> list[str]:
    """Command lines of what the run started and nobody ended, after a minute to end by itself; ends it."""
    run, deadline = os.environ[ENV_RUN], time.monotonic() + 60
    while pids := find_by_environment(ENV_RUN, run, besides=descendants(os.getpid())):  # our children end with us
        if time.monotonic() > deadline:
            commands = []
            for pid in pids:
                with suppress(OSError):  # it ended in this very moment
                    commands.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:120])
            end_by_environment(ENV_RUN, run, grace_s=10.0, timeout_s=40.0, besides=descendants(os.getpid()))
            return commands
        time.sleep(0.1)
    return []


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    server = MotoServer()
    server.start_gateway()
    yield server
    server.stop_gateway()


@pytest.fixture(scope="session")
def radosgw() -> Iterator[RadosGateway]:
    missing = missing_for_radosgw()
    if missing:
        pytest.skip(f"not run: radosgw: {missing}")
    with tempfile.TemporaryDirectory(prefix="rex-rgw-") as folder:  # short: unix socket names end at 107 bytes
        server = RadosGateway(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["directory", "moto", "radosgw"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Each test that asks for it runs on a directory, on moto and on a real radosgw, unless it names its own."""
    if request.param == "directory":
        root = tmp_path / "store"
        root.mkdir()
        return Backend(name="directory", uri=f"file://{root}")
    if request.param == "moto":
        server = request.getfixturevalue("moto_server")
        environment = aws_environment(server.endpoint, "any", "any")
    else:
        server = request.getfixturevalue("radosgw")
        environment = aws_environment(server.endpoint, ACCESS_KEY, SECRET_KEY)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{uuid.uuid4().hex[:12]}"
    make_bucket(bucket)
    return Backend(name=request.param, uri=f"s3://{bucket}/jobs/j1", environment=environment, server=server)
