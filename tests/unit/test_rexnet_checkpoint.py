"""The checkpoint writer on a real chain over a directory that is slowed, hung or taken away, with real parameters."""

from __future__ import annotations

import gc
import logging
import resource
import threading
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.storage.chain.checkpoints import CheckpointStore
from cluster.storage.digests import PART_BYTES
from cluster.storage.directory import DirectoryStore
from jobs.errors import FencedError, StoreUnavailable
from rexnet.checkpoint import read_arrays
from rexnet.snapshot import Image, Source, State
from tests.support.writing import Run, check_chain, make_parameter, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    from mindspore import Tensor

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    one = Run(tmp_path)
    yield one
    one.close()
    assert not list(tmp_path.glob("checkpoint-*"))  # nothing of a snapshot stays on the local disk


def num_images() -> int:
    return sum(type(one) is Image for one in gc.get_objects())


# -- the image


def test_an_image_is_the_safetensors_file_of_its_parameters() -> None:
    weight = make_parameter("w", np.arange(12, dtype=np.float32).reshape(3, 4))
    small = [make_parameter("half", np.ones((3,), np.float16)), make_parameter("count", np.array(7, np.int64)),
             make_parameter("flag", np.array([True, False, True]))]  # fmt: skip
    moments = make_parameter("m", np.arange(12, 24, dtype=np.float32))
    sources = [Source.whole(one) for one in (weight, *small)] + [Source.vector(moments, [weight], "m.")]
    image = Image(State(sources))
    image.copy()
    read = read_arrays(bytes(image.body), "image")
    assert sorted(read) == ["count", "flag", "half", "m.w", "w"]
    for parameter in (weight, *small):
        np.testing.assert_array_equal(read[parameter.name], parameter.asnumpy())
        assert read[parameter.name].dtype == parameter.asnumpy().dtype
    np.testing.assert_array_equal(read["m.w"], moments.asnumpy().reshape(3, 4))


def test_a_parameter_that_was_given_other_memory_is_followed() -> None:
    parameter = make_parameter("w", np.zeros((5,), np.float32))
    image = Image(State([Source.whole(parameter)]))
    for value in (1, 2):
        parameter.set_data(Tensor(np.full((5,), value, np.float32)))
        image.copy()
        assert read_arrays(bytes(image.body), "image")["w"].tolist() == [value] * 5
    parameter.asnumpy()[...] = 3
    assert read_arrays(bytes(image.body), "image")["w"].tolist() == [2] * 5  # a copy, no view
    image.copy()
    assert read_arrays(bytes(image.body), "image")["w"].tolist() == [3] * 5


def test_a_type_that_safetensors_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="phase: safetensors has no name"):
        Image(State([Source.whole(make_parameter("phase", np.zeros((2,), np.complex128)))]))


# -- beside training


def test_uploads_slowed_over_ten_steps_commit_the_state_of_their_step(run: Run) -> None:
    run.train(5)
    run.store.hold()
    run.save()
    run.store.upload_began.acquire()  # else the next one might take its place
    for _ in range(10):
        run.train()
        assert not run.committed.acquire(blocking=False)
    run.save()
    run.train()
    run.store.release()
    run.idle()
    assert [manifest.step for manifest in run.manifests] == [5, 15]
    assert run.writer.counts() == {"committed": 2, "coalesced": 0, "failed": 0}
    line = check_chain(run, 15)
    assert [manifest.parent for manifest in line] == [line[1].name, None]


def test_a_newer_snapshot_takes_the_place_of_the_one_that_waits(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    run.store.hold()
    for _ in range(5):
        run.train()
        run.save()
        if run.step == 1:
            run.store.upload_began.acquire()
    run.store.release()
    run.idle()
    assert [manifest.step for manifest in run.manifests] == [1, 5]
    assert run.writer.counts() == {"committed": 2, "coalesced": 3, "failed": 0}
    said = [record.getMessage() for record in caplog.records]
    assert [text.split()[:2] for text in said] == [["action=checkpoint-coalesced", f"step={n}"] for n in (2, 3, 4)]
    check_chain(run, 5)


def test_never_more_than_two_copies_of_the_state_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gc.collect()
    before = num_images()
    run = Run(tmp_path, size=400_000)
    size_bytes = sum(parameter.asnumpy().nbytes for parameter in run.parameters)  # 9.6 MB
    tracemalloc.start()
    try:
        run.store.hold()
        for step in range(1, 7):
            run.step = step
            run.save()
            if step == 1:
                run.store.upload_began.acquire()
            assert num_images() - before <= 2
        run.store.release()
        run.idle()
        for step in range(7, 11):
            run.step = step
            run.save()
            run.idle()
        assert run.writer.counts() == {"committed": 6, "coalesced": 4, "failed": 0}
        assert num_images() - before == 2
        # and one part of the file that is being hashed
        assert 2 * size_bytes < tracemalloc.get_traced_memory()[1] < 2.3 * size_bytes + PART_BYTES
    finally:
        tracemalloc.stop()
        run.close()


def test_a_store_that_is_dead_for_a_while_loses_no_point_and_doubles_none(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    run.train(2)
    run.save()
    run.idle()
    run.store.dead = True
    for _ in range(3):
        run.train()
        run.save()
        run.idle()
        run.writer.check()  # nothing that ends training
        assert run.writer.failing
    run.store.dead = False
    run.train()
    run.save()
    run.idle()
    assert not run.writer.failing
    assert run.writer.counts() == {"committed": 2, "coalesced": 0, "failed": 3}
    assert sum("action=checkpoint-failed" in record.getMessage() for record in caplog.records) == 3
    assert [manifest.step for manifest in check_chain(run, 6)] == [6, 2]


def test_a_store_that_dies_during_an_upload_leaves_its_points_to_the_snapshot_that_waits(run: Run) -> None:
    run.store.hold()
    run.train(3)
    run.save()
    run.store.upload_began.acquire()
    run.train(2)
    run.save()
    run.store.dead = True
    run.store.release()
    run.idle()
    assert run.writer.counts() == {"committed": 0, "coalesced": 0, "failed": 2}
    run.store.dead = False
    run.train()
    run.save()
    run.idle()
    assert [manifest.step for manifest in check_chain(run, 6)] == [6]


def test_an_attempt_that_was_fenced_off_ends_at_the_next_step_and_writes_no_more(run: Run) -> None:
    run.train()
    run.save()
    run.idle()
    CheckpointStore(DirectoryStore(Path("store")), "job").start_attempt(2)
    run.train()
    run.save()
    run.idle()
    for call in (run.writer.check, run.save, lambda: run.writer.finish(run.progress(), timeout_s=60)):
        with pytest.raises(FencedError):
            call()
    assert [manifest.step for manifest in run.manifests] == [1]


def test_a_bug_in_the_background_is_raised_in_training_and_nothing_more_is_committed(run: Run) -> None:
    run.breaks = True
    run.store.hold()
    for _ in range(2):
        run.train()
        run.save()
        if run.step == 1:
            run.store.upload_began.acquire()
    run.store.release()
    run.idle()
    with pytest.raises(ZeroDivisionError):
        run.writer.check()
    check_chain(run, 1)


def test_a_local_disk_without_room_is_a_failed_checkpoint_and_no_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the kernel refuses to write on, as on a full disk
    try:
        run.save()
        run.idle()
        run.writer.check()
        assert run.writer.counts() == {"committed": 0, "coalesced": 0, "failed": 1}
        run.train()
        monkeypatch.setattr("rexnet.checkpoint._PAUSE_S", 1000.0)  # one try, however long it takes
        with pytest.raises(StoreUnavailable, match=r"step 2 cannot be written to .*EFBIG.*needs room"):
            run.writer.finish(run.progress(), timeout_s=60)
    finally:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.chain.newest() is None
    run.writer.finish(run.progress(), timeout_s=60)
    check_chain(run, 2)


# -- the end


def test_a_drain_during_a_commit_waits_for_it_drops_what_waits_and_commits_the_last_step(run: Run) -> None:
    run.store.hold()
    run.train()
    run.save()
    run.store.upload_began.acquire()
    run.train()
    run.save()
    run.train()
    drain = threading.Thread(target=run.writer.finish, args=(run.progress(),), kwargs={"timeout_s": 60})
    drain.start()
    until(lambda: run.writer.num_coalesced == 1)
    assert drain.is_alive() and not run.manifests
    run.store.release()
    drain.join()
    assert [manifest.step for manifest in run.manifests] == [1, 3]
    assert run.writer.counts() == {"committed": 2, "coalesced": 1, "failed": 0}
    check_chain(run, 3)


def test_a_drain_after_a_commit_of_that_step_writes_nothing(run: Run) -> None:
    run.train()
    run.save()
    run.writer.finish(run.progress(), timeout_s=60)
    run.writer.finish(run.progress(), timeout_s=60)
    assert [manifest.step for manifest in run.manifests] == [1]


def test_a_validation_that_was_owed_is_committed_at_the_step_it_started_from(run: Run, tmp_path: Path) -> None:
    run.train()
    run.writer.finish(run.progress(), timeout_s=60)
    again = Run(tmp_path, attempt=2)
    again.step = 1
    again.writer.finish(again.progress(), timeout_s=60)
    assert not again.manifests  # nothing is new yet
    again.writer.finish(again.progress({"top1": 0.5}), timeout_s=60)
    again.close()
    newest = again.chain.newest()
    assert newest is not None and (newest.attempt, newest.step, newest.metrics) == (2, 1, {"top1": 0.5})
    assert newest.parent == run.manifests[0].name


def test_a_drain_with_a_dead_store_gives_up_and_leaves_the_checkpoint_before(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    sleeps = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s))
    monkeypatch.setattr("rexnet.checkpoint.time", sleeps)
    for pause in ("_PAUSE_S", "_LONGEST_PAUSE_S"):
        monkeypatch.setattr(f"rexnet.checkpoint.{pause}", 400.0)
    run.train()
    run.save()
    run.idle()
    run.train()
    run.store.dead = True
    with pytest.raises(StoreUnavailable, match=r"step 2 was not committed within 600 s: .* does not answer"):
        run.writer.finish(run.progress(), timeout_s=600)
    run.store.dead = False
    assert run.writer.num_failed == 2
    check_chain(run, 1)


def test_a_drain_with_a_hung_store_gives_up_while_the_commit_is_in_flight(run: Run) -> None:
    run.store.hold()
    run.train()
    run.save()
    run.store.upload_began.acquire()
    run.train()
    with pytest.raises(StoreUnavailable, match="the commit of step 1 is still in flight"):
        run.writer.finish(run.progress(), timeout_s=0.1)
    run.store.release()
    run.idle()
    check_chain(run, 1)


def test_a_drain_tries_again_until_the_store_is_back(run: Run) -> None:
    run.train()
    run.store.dead = True
    drain = threading.Thread(target=run.writer.finish, args=(run.progress(),), kwargs={"timeout_s": 60})
    drain.start()
    until(lambda: run.writer.num_failed >= 2)
    run.store.dead = False
    drain.join()
    check_chain(run, 1)
