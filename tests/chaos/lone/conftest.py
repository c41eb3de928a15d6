"""Three hosts that share nothing but an S3 and an MLflow server: one cluster for all tests of this folder.

Each test begins with three hosts that are up and on the network. Whatever needs a Ray node of another kind comes last.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import hosts as hosts_support
from tests.support.radosgw import missing_for_radosgw
from tests.support.ray_hosts import Cluster, lone_hosts

LEASE_S = 20.0  # long enough for the provider's word to come first, and all others, on a busy machine


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    lacking = hosts_support.missing() or missing_for_radosgw()
    if lacking:
        pytest.skip(f"not run: hosts in network namespaces with a store outside: {lacking}")
    with lone_hosts(3, lease_s=LEASE_S, host_gone_command=["test", "-e", "/tmp/gone-{host}"]) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> None:
    """Each test begins with all hosts: one that a fault had cut off may have lost its Ray node a minute later."""
    cluster.mend()
