"""URIs of stores: what is valid, and what is said of the rest."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import open_store
from cluster.storage.base import ConditionUnsupported, Leftover, check_key, check_prefix
from cluster.storage.doctor import examine
from jobs.errors import SpecError, StoreUnavailable


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "store",
        "/abs/dir",
        "file://",
        "file:///",
        "file://host/dir",
        "file:relative",
        "file:///a/../b",
        "s3://",
        "s3:///key",
        "s3://bucket:80/x",
        "s3://bucket/a b",
        "s3://bucket/x?region=1",
        "gs://bucket/x",
        "http://host/x",
    ],
)
def test_uri_that_is_none_is_refused_and_the_valid_ones_are_named(uri: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_store(uri)
    assert "valid" in str(caught.value)


def test_secret_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(SpecError) as caught:
        open_store("s3://AKIA:topsecret@bucket/prefix")
    assert "topsecret" not in str(caught.value)


def test_directory_is_opened_without_being_made(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/with%20space/store")
    assert store.uri == f"file://{tmp_path}/with%20space/store"
    assert store.list("") == []
    assert list(tmp_path.iterdir()) == []
    store.create("k", b"x")
    assert (tmp_path / "with space" / "store" / "k").read_bytes() == b"x"


def test_file_in_the_place_of_the_store_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"x")
    with pytest.raises(StoreUnavailable, match="is not a folder"):
        open_store(f"file://{tmp_path}/store").list("")


def test_other_folder_in_the_place_of_the_store_is_unavailable(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = open_store(f"file://{root}")
    store.create("k", b"x")
    root.rename(tmp_path / "unmounted")
    root.mkdir()
    for operation in (lambda: store.get("k"), lambda: store.list(""), lambda: store.create("n", b"x")):
        with pytest.raises(StoreUnavailable, match="another folder"):
            operation()
    assert list(root.iterdir()) == []


def test_profile_that_does_not_exist_is_a_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(StoreUnavailable, match="AWS_PROFILE does not exist"):
        open_store("s3://bucket/prefix")


def test_profile_that_is_given_comes_before_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("[profile mine]\nregion = r\nendpoint_url = http://mine:1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    store = open_store("s3://bucket/prefix", profile="mine")
    assert store.client.meta.endpoint_url == "http://mine:1"  # type: ignore[attr-defined]


def test_protocol_that_is_none_is_refused_and_the_valid_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="valid are create-only and allotted"):
        open_store(f"file://{tmp_path}", "optimistic")
    assert open_store(f"file://{tmp_path}", "allotted").protocol == "allotted"


def test_directory_without_hard_links_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")  # as on vfat and some FUSE file systems

    monkeypatch.setattr(os, "link", link)
    store = open_store(f"file://{tmp_path / 'store'}")
    with pytest.raises(ConditionUnsupported, match="no hard links"):
        store.create("k", b"x")
    assert (store.list(""), store.leftovers("")) == ([], [])
    assert examine(store).protocol == "allotted"
    open_store(store.uri, "allotted").create("k", b"x")
    assert store.get("k") == b"x"


def test_unfinished_write_that_is_outside_is_not_discarded(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path / 'store'}")
    store.create("k", b"x")
    for token in ("../k", "/etc/hostname", "a/../../k"):
        with pytest.raises(SpecError):
            store.discard(Leftover(key="k", token=token, size_bytes=1))
    assert store.get("k") == b"x"


def test_key_and_prefix_rules() -> None:
    assert check_key("objects/ab12") == "objects/ab12"
    assert check_prefix("") == ""
    assert check_prefix("objects/") == "objects/"
    for prefix in ("/", "../", "a/../"):
        with pytest.raises(SpecError):
            check_prefix(prefix)


def test_opening_a_directory_imports_no_boto3_no_ray_no_mindspore() -> None:
    program = (
        "import sys; from cluster.storage import open_store; import cluster.storage.chain.checkpoints; "
        "open_store('file:///tmp/x'); "
        "print([name for name in ('boto3', 'botocore', 'ray', 'mindspore') if name in sys.modules])"
    )
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
