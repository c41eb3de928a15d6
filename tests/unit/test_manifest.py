"""Properties of the manifest: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage.chain.records import sealed_manifest
from cluster.storage.chain.seal import canonical, seal, unseal
from jobs.errors import CorruptCheckpoint, UnknownManifest
from jobs.manifest import VERSION, FileEntry, Manifest, manifest_name, object_key, parse, parse_name, parse_object
from tools.manifest_schema import schema

_ATTEMPTS, _STEPS = st.integers(1, 999_999), st.integers(0, 999_999_999)
_SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_NAMES = st.builds(manifest_name, _ATTEMPTS, _STEPS)


def entry(name: str, size_bytes: int, sha256: str, attempt: int, step: int, history: bool) -> FileEntry:  # noqa: PLR0917
    key = object_key(attempt, step, sha256)
    return FileEntry(name=name, size_bytes=size_bytes, sha256=sha256, key=key, history=history)


MANIFESTS = st.builds(
    Manifest,
    job=_TEXT,
    attempt=_ATTEMPTS,
    step=_STEPS,
    epoch=st.integers(0, 10_000),
    samples=st.integers(0, 2**53),
    parent=st.none() | _NAMES,
    files=st.lists(
        st.builds(
            entry, st.text(min_size=1, max_size=9), st.integers(0, 2**50), _SHA256, _ATTEMPTS, _STEPS, st.booleans()
        ),
        max_size=3,
    ).map(tuple),
    config_sha256=_SHA256,
    world_size=st.integers(1, 4096),
    seed=st.integers(-(2**63), 2**63 - 1),
    cpus=st.lists(st.integers(0, 512), max_size=4).map(tuple),
    code=st.dictionaries(_TEXT, _TEXT, max_size=2),
    versions=st.dictionaries(_TEXT, _TEXT, max_size=2),
    metrics=st.dictionaries(_TEXT, st.floats(allow_nan=False), max_size=3),
    nonce=st.text("0123456789abcdef", min_size=8, max_size=32),
    created_at=st.floats(0, 1e10),
)


@given(_ATTEMPTS, _STEPS)
def test_name_parses_back_and_sorts_as_its_key(attempt: int, step: int) -> None:
    name = manifest_name(attempt, step)
    assert parse_name(name) == (attempt, step)
    assert (manifest_name(attempt, step + 1) > name) or step == 999_999_999


@given(st.tuples(_ATTEMPTS, _STEPS), st.tuples(_ATTEMPTS, _STEPS))
def test_names_sort_as_text_like_their_keys(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (manifest_name(*one) < manifest_name(*other)) == (one < other)


@given(st.text(max_size=40))
def test_other_text_is_no_name(text: str) -> None:
    assert parse_name(text) is None or manifest_name(*parse_name(text)) == text  # type: ignore[misc]


@given(MANIFESTS)
def test_manifest_written_is_read_back_equal(manifest: Manifest) -> None:
    assert parse(manifest.to_bytes(), manifest.name) == manifest
    sealed = sealed_manifest(manifest)
    assert parse(canonical(unseal(sealed, manifest.name)), manifest.name) == manifest
    assert json.loads(sealed)["sha256"] == manifest.sha256()


@given(MANIFESTS, st.data())
def test_any_changed_byte_of_a_sealed_manifest_is_seen(manifest: Manifest, data: st.DataObject) -> None:
    body = bytearray(sealed_manifest(manifest))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptCheckpoint):
        unseal(bytes(body), manifest.name)


@given(MANIFESTS, st.data())
def test_any_truncation_of_a_sealed_manifest_is_seen(manifest: Manifest, data: st.DataObject) -> None:
    body = sealed_manifest(manifest)
    with pytest.raises(CorruptCheckpoint):
        unseal(body[: data.draw(st.integers(0, len(body) - 1))], manifest.name)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_corrupt_never_another_error(body: bytes) -> None:
    for read in (lambda: parse(body, "manifests/000001-000000001.json"), lambda: unseal(body, "x")):
        try:
            read()
        except CorruptCheckpoint:
            pass
        except UnknownManifest:
            pytest.fail("random bytes are no newer version")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_json_is_a_manifest_corrupt_or_newer(values: object) -> None:
    for document in (values, {"version": values}):
        with suppress(CorruptCheckpoint, UnknownManifest):
            parse(json.dumps(document).encode(), "manifests/000001-000000001.json")


@given(MANIFESTS, st.integers(VERSION + 1, 10**6))
def test_newer_version_is_unknown_not_corrupt(manifest: Manifest, version: int) -> None:
    body = seal({**manifest.model_dump(mode="json"), "version": version, "added": 1})
    with pytest.raises(UnknownManifest, match="or a newer one"):
        parse(canonical(unseal(body, manifest.name)), manifest.name)


@given(MANIFESTS, _NAMES)
def test_manifest_under_another_name_is_corrupt(manifest: Manifest, name: str) -> None:
    if name != manifest.name:
        with pytest.raises(CorruptCheckpoint, match="says it is"):
            parse(manifest.to_bytes(), name)


def test_diverged_metrics_do_not_make_a_manifest_unreadable() -> None:
    manifest = Manifest(
        job="j", attempt=1, step=1, epoch=0, samples=64, parent=None, files=(), config_sha256="0" * 64, world_size=1,
        seed=1, metrics={"loss": math.nan, "worst": math.inf}, nonce="12345678", created_at=1.0,
    )  # fmt: skip
    read = parse(canonical(unseal(sealed_manifest(manifest), "m")), manifest.name)
    assert math.isnan(read.metrics["loss"]) and read.metrics["worst"] == math.inf


def test_file_that_the_manifest_does_not_list_is_named() -> None:
    manifest = Manifest(
        job="j", attempt=1, step=1, epoch=0, samples=64, parent=None, config_sha256="0" * 64, world_size=1, seed=1,
        files=(entry("model", 1, "0" * 64, 1, 1, False),), nonce="12345678", created_at=1.0,
    )  # fmt: skip
    assert manifest.file("model").size_bytes == 1
    with pytest.raises(CorruptCheckpoint, match=r"'other', only \['model'\]"):
        manifest.file("other")


@given(_ATTEMPTS, _STEPS, _SHA256)
def test_object_key_parses_back(attempt: int, step: int, sha256: str) -> None:
    assert parse_object(object_key(attempt, step, sha256)) == (attempt, step, sha256)


@pytest.mark.parametrize("key", ["000001-000000010", "\u0660\u0660\u0660\u0660\u0660\u0661-000000010"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_key_with_a_line_end_or_other_digits_is_neither_name_nor_object_key(key: str, end: str) -> None:
    plain = key.isascii() and not end
    assert (parse_name(f"manifests/{key}.json{end}") is not None) == plain
    assert (parse_object(f"objects/{key}/{'a' * 64}{end}") is not None) == plain


@given(st.text(max_size=90))
def test_other_text_is_no_object_key(text: str) -> None:
    assert parse_object(text) is None or object_key(*parse_object(text)) == text  # type: ignore[misc]


@settings(deadline=None, max_examples=30)
@given(MANIFESTS)
def test_published_schema_takes_what_is_written_and_nothing_altered(manifest: Manifest) -> None:
    body = json.loads(sealed_manifest(manifest))
    jsonschema.validate(body, schema())
    for harm in ({"step": -1}, {"surprise": 1}, {"version": VERSION + 1}, {"sha256": "short"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**body, **harm}, schema())


def test_published_schema_is_that_of_the_code() -> None:
    page = Path(__file__).parents[2] / "docs" / "manifest.schema.json"
    assert json.loads(page.read_text()) == schema(), "run `make docs`"
