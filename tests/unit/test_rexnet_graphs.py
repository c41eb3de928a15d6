"""Compiled graphs: kept on the node, sent with the job's objects, restored elsewhere, believed only if unharmed."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from cluster.storage import open_store
from rexnet.graphs import PREFIX, GraphCache, graph_key, pack, unpack
from rexnet.recipe import make_recipe
from rexnet.world import World

WORLD = World(rank=0, size=2, cpus=(0,))
RECIPE = make_recipe({"model": "rexnet_09", "lr": 0.1}, "t")


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
        monkeypatch.setenv(name, "")


def environment(node: Path) -> dict[str, str]:
    return {"REX_COMPILE_CACHE": str(node), "REX_STORE": f"file://{node.parent / 'objects'}"}


def compiled(cache: GraphCache, graph: bytes) -> None:
    """As MindSpore would leave one."""
    folder = cache._own / "rank_0" / "graph_cache"
    folder.mkdir(parents=True)
    (folder / "0.mindir").write_bytes(graph)


def found(cache: GraphCache) -> list[bytes]:
    return [path.read_bytes() for path in cache._own.rglob("*.mindir")]


def test_graphs_are_found_on_the_same_node_and_on_a_new_one(tmp_path: Path) -> None:
    first = GraphCache(environment(tmp_path / "node-1"), RECIPE, WORLD, program="train")
    assert not first.is_warm
    compiled(first, b"graph")
    first.publish()
    first.close()
    for node in ("node-1", "node-2"):
        again = GraphCache(environment(tmp_path / node), RECIPE, WORLD, program="train")
        assert again.is_warm and found(again) == [b"graph"]
        again.close()


def test_damaged_graph_in_the_store_is_compiled_anew(tmp_path: Path) -> None:
    first = GraphCache(environment(tmp_path / "node-1"), RECIPE, WORLD, program="train")
    compiled(first, b"graph")
    first.publish()
    first.close()
    store = open_store(f"file://{tmp_path / 'objects'}")
    (info,) = store.list(PREFIX)
    body = bytearray(store.get(info.key))
    body[-20] ^= 1
    damaged = tmp_path / "damaged"
    damaged.write_bytes(body)
    store.put_file(info.key, damaged)
    again = GraphCache(environment(tmp_path / "node-2"), RECIPE, WORLD, program="train")
    assert not again.is_warm and found(again) == []
    again.close()


def test_absent_store_costs_a_compilation_and_no_more(tmp_path: Path) -> None:
    first = GraphCache(environment(tmp_path / "node-1"), RECIPE, WORLD, program="train")
    compiled(first, b"graph")
    (tmp_path / "objects").write_text("no folder")
    first.publish()
    first.close()
    again = GraphCache(environment(tmp_path / "node-1"), RECIPE, WORLD, program="train")
    assert again.is_warm
    again.close()


def test_leftover_of_a_killed_writer_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    node = tmp_path / "node-1"
    node.mkdir()
    (node / ".graphs-killed").write_bytes(b"half")
    os.utime(node / ".graphs-killed", (0, 0))
    (node / ".graphs-living").write_bytes(b"half")
    cache = GraphCache(environment(node), RECIPE, WORLD, program="train")
    compiled(cache, b"graph")
    cache.publish()
    cache.close()
    assert sorted(path.name for path in node.glob(".graphs-*")) == [".graphs-living"]


def test_every_bit_counts_when_unpacking(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(b"x")
    body = pack(source)
    for position in range(0, len(body), 7):
        harmed = bytearray(body)
        harmed[position] ^= 1
        target.mkdir()
        with pytest.raises(ValueError, match="damaged"):
            unpack(bytes(harmed), target)
        shutil.rmtree(target)
    target.mkdir()
    unpack(body, target)
    assert (target / "deep" / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    "change", [{"model": "rexnet_10"}, {"batch_size": 2}, {"ema": True}, {"opt": "adamw"}, {"loss_scale": 2.0},
               {"label_smoothing": 0.1}, {"clip_grad": True}, {"image_resize": 64}, {"global_batch": 512},
               {"scale_lr": True}]
)  # fmt: skip
def test_what_shapes_a_graph_changes_its_key(change: dict[str, object]) -> None:
    assert graph_key(make_recipe({"lr": 0.1, **change}, "t"), WORLD, program="train") != graph_key(
        RECIPE, WORLD, program="train"
    )


def test_what_the_host_alone_reads_does_not_and_world_and_program_do(monkeypatch: pytest.MonkeyPatch) -> None:
    key = graph_key(RECIPE, WORLD, program="train")
    hosts = make_recipe({"lr": 0.2, "epoch_size": 3, "seed": 7, "data_dir": "/x", "max_steps": 9}, "t")
    assert graph_key(hosts, WORLD, program="train") == key
    assert graph_key(RECIPE, dataclasses.replace(WORLD, size=4), program="train") != key
    assert graph_key(RECIPE, WORLD, program="validate") != key
    monkeypatch.setenv("REX_KERNELS", "builtin")
    assert graph_key(RECIPE, WORLD, program="train") != key
