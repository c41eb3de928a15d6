"""The kernels' update, average and gradient in one pass: the built-in operators' values, the same bits each time."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rexnet import kernels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    import mindspore as ms
    from mindspore import ParameterTuple, nn, ops

    from rexnet.flat import Average
    from rexnet.model import create_model
    from rexnet.optimizer import Sgd
    from rexnet.recipe import make_recipe
    from rexnet.step import Gradient, TrainStep

pytestmark = pytest.mark.filterwarnings("ignore")
needs_library = pytest.mark.skipif(kernels.library() is None, reason="no C++ compiler here")
Arrays = dict[str, np.ndarray[Any, Any]]


SIZES = ((1,), (3, 5), (40001,), (129, 257), (7,))  # across the kernels' blocks of 32768, and not multiples of eight


def make_weights(random: np.random.Generator) -> ParameterTuple:
    """Some that weight decay spares with "auto", and some that it does not."""
    names = ("a.gamma", "b.weight", "c.weight", "d.beta", "e.weight")
    values = [random.standard_normal(size, dtype=np.float32) for size in SIZES]
    return ParameterTuple([ms.Parameter(ms.Tensor(v), name=n) for n, v in zip(names, values, strict=True)])


class UpdateAndAverage(nn.Cell):  # type: ignore[misc]
    def __init__(self, sgd: Sgd, average: Any) -> None:
        super().__init__(auto_prefix=False)
        self.sgd, self.move = sgd, Average(average)

    def construct(self, gradients: Any, divisor: Any, lr: Any, go: Any, decay: Any) -> Any:
        return self.move(self.sgd.weights, ops.depend(decay, self.sgd(gradients, divisor, lr, go)))


def update_twice(*, nesterov: bool, spared: str, go: float = 1.0) -> Arrays:
    """Weights and velocities after two updates, and an average of those weights."""
    ms.set_context(mode=ms.GRAPH_MODE)
    random = np.random.default_rng(5)
    weights = make_weights(random)
    length = sum(int(np.prod(size)) for size in SIZES)
    wanted = {"opt": "sgd", "weight_decay": 0.1, "weight_decay_filter": spared, "use_nesterov": nesterov}
    sgd = Sgd(weights, make_recipe(wanted, "test"))
    average = ms.Parameter(ms.Tensor(random.standard_normal(length, dtype=np.float32)), name="average")
    update = UpdateAndAverage(sgd, average)
    sgd.velocity.set_data(ms.Tensor(random.standard_normal(length, dtype=np.float32)))
    for _ in range(2):
        gradients = ms.Tensor(random.standard_normal(length + 2, dtype=np.float32))
        update(gradients, *(ms.Tensor(value, ms.float32) for value in (3.0, 0.1, go, 0.9)))
    return {parameter.name: parameter.asnumpy().copy() for parameter in (*weights, sgd.velocity, average)}


@needs_library
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("spared", ["disable", "auto"])  # one decay for all, one for each
def test_the_update_in_one_pass_equals_the_built_in_operators(
    nesterov: bool, spared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = update_twice(nesterov=nesterov, spared=spared)
    monkeypatch.setenv(kernels.ENV_KERNELS, kernels.BUILTIN)
    theirs = update_twice(nesterov=nesterov, spared=spared)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


@needs_library
def test_an_update_that_must_not_go_changes_no_bit() -> None:
    found = update_twice(nesterov=True, spared="auto", go=0.0)
    random = np.random.default_rng(5)
    for weight in make_weights(random):
        assert np.array_equal(found[weight.name], weight.asnumpy()), weight.name
    random.standard_normal(len(found["average"]), dtype=np.float32)
    velocity = random.standard_normal(len(found["momentum"]), dtype=np.float32)
    assert np.array_equal(found["momentum"], velocity)


UPDATE_IN_A_PROCESS = """
import hashlib, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
from tests.unit.test_rexnet_kernels_update import update_twice
found = update_twice(nesterov=True, spared="auto")
print("bits", hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest())
"""


@needs_library
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_the_update_on_one_cpu_and_on_two_has_the_same_bits() -> None:
    lines = set()
    for cpus in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", UPDATE_IN_A_PROCESS, cpus], capture_output=True, text=True,
                              check=True, cwd=Path(__file__).parents[2])  # fmt: skip
        lines |= {line for line in done.stdout.splitlines() if line.startswith("bits")}
    assert len(lines) == 1


def train_two_steps(*, ema: bool) -> tuple[Arrays, Arrays, Arrays]:
    """ReXNet 0.9: parameters after each of two steps, and the average, which is empty without `ema`."""
    ms.set_context(mode=ms.GRAPH_MODE)
    network = create_model("rexnet_09", num_classes=7, image_size=32, seed=1)
    step = TrainStep(network, make_recipe({"opt": "sgd", "ema": ema, "drop_rate": 0.0}, "test"), 1)
    step.start_average()
    random, none = np.random.default_rng(0), ms.Tensor(np.zeros((1, 1), np.float32))
    images = ms.Tensor(random.standard_normal((8, 3, 32, 32), dtype=np.float32))
    labels = ms.Tensor(random.integers(0, 7, 8).astype(np.int32))
    seen = []
    for decay in (0.0, 0.75):  # the first step sets the average to what it leaves
        step([(images, labels, labels, none, none)], ms.Tensor(np.array([0.01, 0, 1, decay], np.float32)))
        seen.append({p.name: p.asnumpy().copy() for p in network.get_parameters()})
    return seen[0], seen[1], step.average()


@needs_library
def test_averaging_changes_neither_weights_nor_moving_statistics_and_follows_both() -> None:
    """MindSpore copies a parameter that is made to wait for something, and the kernels then wrote to the copy."""
    _, plain, _ = train_two_steps(ema=False)
    first, second, average = train_two_steps(ema=True)
    assert set(average) == set(second)
    for name, value in second.items():
        assert np.array_equal(value, plain[name]), name
        assert not np.array_equal(value, first[name]), name
        wanted = 0.75 * first[name] + 0.25 * value
        np.testing.assert_allclose(average[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def flat_gradient(*, is_one_operator: bool, **changes: Any) -> np.ndarray[Any, Any]:
    """All gradients, loss and wish to stop of ReXNet 0.9 on five images of 35 px, and what moved besides."""
    ms.set_context(mode=ms.GRAPH_MODE)
    network = create_model("rexnet_09", num_classes=11, image_size=35, seed=1, drop_path_rate=0.3)
    recipe = make_recipe({"opt": "sgd", "loss_scale": 64.0, **changes}, "test")
    gradient = Gradient(network, ParameterTuple(network.trainable_params()), recipe, None)
    gradient.is_one_operator = is_one_operator
    gradient.set_train(True)
    random = np.random.default_rng(0)
    images = random.standard_normal((5, 3, 35, 35), dtype=np.float32)
    labels = random.integers(0, 11, (2, 5)).astype(np.int32)
    mask = random.choice([0, 1.25], (5, network.num_features)).astype(np.float32)
    paths = random.choice([0, 1.25], (5, len(network.path_rates))).astype(np.float32)
    control = np.array([0.1, 3, 0.3, 0.9], np.float32)
    flat = gradient(*(ms.Tensor(value) for value in (images, *labels, mask, paths, control))).asnumpy()
    moved = [p.asnumpy().ravel() for p in network.get_parameters() if not p.requires_grad]
    return np.concatenate([*moved, flat])


@needs_library
@pytest.mark.parametrize(
    "changes", [{"drop_rate": 0.0}, {"drop_rate": 0.2, "label_smoothing": 0.1}, {"drop_rate": 0.2, "mixup": 0.2}]
)
def test_one_operator_for_all_gradients_equals_the_blocks_operators(changes: dict[str, float]) -> None:
    ours = flat_gradient(is_one_operator=True, **changes)
    theirs = flat_gradient(is_one_operator=False, **changes)
    assert ours[-1] == 3
    np.testing.assert_allclose(ours[-2], theirs[-2], rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * abs(theirs[:-2]).max())
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


@needs_library
def test_every_instruction_set_computes_the_same_but_for_rounding() -> None:
    best, *others = kernels.instruction_sets()
    changes: dict[str, Any] = {"drop_rate": 0.2, "mixup": 0.2}
    expected = flat_gradient(is_one_operator=True, **changes)
    try:
        for name in others:
            assert kernels.use(name) and kernels.instruction_set() == name
            found = flat_gradient(is_one_operator=True, **changes)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected[:-2]).max(), err_msg=name)
            assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected), name
    finally:
        assert kernels.use(best)
    assert not kernels.use("6502") and kernels.instruction_set() == best
