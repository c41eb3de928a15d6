"""The training step's arithmetic on a small linear network, against NumPy: optimisers, clipping, scaling, averaging."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from rexnet import kernels
from rexnet.recipe import Recipe, make_recipe
from rexnet.step import TrainStep, average_decay

Array = np.ndarray[Any, Any]
CLASSES, FEATURES, BATCH = 3, 4, 6


class Linear(nn.Cell):  # type: ignore[misc]
    """A network as the step wants it: a weight, a bias, a norm's gamma (for the decay filters), masks."""

    path_rates: tuple[float, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        start = np.random.default_rng(7).standard_normal((CLASSES, FEATURES)).astype(np.float32)
        self.weight = ms.Parameter(Tensor(start), name="cls.weight")
        self.bias = ms.Parameter(ops.zeros(CLASSES), name="cls.bias")
        self.gamma = ms.Parameter(ops.ones(FEATURES), name="norm.gamma")

    def construct(self, x: Tensor, mask: Tensor | None = None, paths: Tensor | None = None) -> Tensor:
        x = x.reshape((x.shape[0], -1)) * self.gamma
        if mask is not None:
            x = x * mask
        return ops.matmul(x, self.weight.T) + self.bias


@pytest.fixture(autouse=True, params=["", kernels.BUILTIN], ids=["kernels", "builtin"])
def graph_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with the kernels' operators for the update and with MindSpore's own."""
    monkeypatch.setenv(kernels.ENV_KERNELS, request.param)
    ms.set_context(mode=ms.GRAPH_MODE)


def recipe(**changes: Any) -> Recipe:
    return make_recipe({"opt": "sgd", "weight_decay": 0.0, "num_classes": CLASSES, "batch_size": BATCH, **changes}, "t")


def batch(seed: int, number: int = BATCH) -> tuple[Array, Array, Array]:
    draw = np.random.default_rng(seed)
    images = draw.standard_normal((number, 1, 2, 2)).astype(np.float32)
    labels = draw.integers(0, CLASSES, (2, number)).astype(np.int32)
    return images, labels[0], labels[1]


def inputs(images: Array, labels: Array, others: Array, mask: Array | None = None) -> tuple[Tensor, ...]:
    none = np.zeros((1, 1), np.float32)
    return tuple(Tensor(a) for a in (images, labels, others, none if mask is None else mask, none))


def control(lr: float = 0.1, stop: float = 0.0, lam: float = 1.0, decay: float = 0.0) -> Tensor:
    return Tensor(np.array([lr, stop, lam, decay], np.float32))


def values(network: nn.Cell) -> dict[str, Array]:
    return {p.name: p.asnumpy().astype(np.float64) for p in network.get_parameters()}


def gradient(at: dict[str, Array], images: Array, labels: Array) -> tuple[float, dict[str, Array]]:
    """Mean cross entropy of `Linear`, and its gradients, in float64."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    scaled = flat * at["norm.gamma"]
    logits = scaled @ at["cls.weight"].T + at["cls.bias"]
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    share = shifted / shifted.sum(1, keepdims=True)
    loss = -np.log(share[np.arange(len(labels)), labels]).mean()
    back = (share - np.eye(CLASSES)[labels]) / len(labels)
    inner = back @ at["cls.weight"]
    return loss, {
        "cls.weight": back.T @ scaled, "cls.bias": back.sum(0), "norm.gamma": (inner * flat).sum(0),
    }  # fmt: skip


def close(network: nn.Cell, wanted: dict[str, Array]) -> None:
    for name, array in values(network).items():
        np.testing.assert_allclose(array, wanted[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_filter", ["disable", "auto", "norm_and_bias"])
def test_sgd_with_momentum_and_decay(nesterov: bool, weight_filter: str) -> None:
    network = Linear()
    asked = recipe(weight_decay=0.1, weight_decay_filter=weight_filter, use_nesterov=nesterov)
    step, wanted = TrainStep(network, asked, 1), values(network)
    velocity = {name: np.zeros_like(value) for name, value in wanted.items()}
    decayed = {"disable": set(wanted), "auto": {"cls.weight", "cls.bias"}, "norm_and_bias": {"cls.weight"}}
    for seed in range(3):
        images, labels, others = batch(seed)
        expected, gradients = gradient(wanted, images, labels)
        loss, stop = step([inputs(images, labels, others)], control())
        assert (float(loss.asnumpy()), float(stop.asnumpy())) == (pytest.approx(expected, rel=1e-5), 0.0)
        for name, g in gradients.items():
            g = g + (0.1 * wanted[name] if name in decayed[weight_filter] else 0)  # noqa: PLW2901
            velocity[name] = 0.9 * velocity[name] + g
            wanted[name] = wanted[name] - 0.1 * (g + 0.9 * velocity[name] if nesterov else velocity[name])
        close(network, wanted)


@pytest.mark.parametrize("opt", ["adam", "adamw"])
def test_adam_and_its_decoupled_decay(opt: str) -> None:
    network = Linear()
    step, wanted = TrainStep(network, recipe(opt=opt, weight_decay=0.1, eps=1e-8), 1), values(network)
    mean = {name: np.zeros_like(value) for name, value in wanted.items()}
    square = {name: np.zeros_like(value) for name, value in wanted.items()}
    for count in range(1, 4):
        images, labels, others = batch(count)
        _, gradients = gradient(wanted, images, labels)
        step([inputs(images, labels, others)], control(lr=0.01))
        for name, g in gradients.items():
            g = g + (0.1 * wanted[name] if opt == "adam" else 0)  # noqa: PLW2901
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g * g
            change = mean[name] / (1 - 0.9**count) / (np.sqrt(square[name] / (1 - 0.999**count)) + 1e-8)
            wanted[name] = wanted[name] - 0.01 * (change + (0.1 * wanted[name] if opt == "adamw" else 0))
        close(network, wanted)


def test_accumulated_micro_batches_are_one_step_of_their_mean() -> None:
    network = Linear()
    step, wanted = TrainStep(network, recipe(), 1, accumulation=3), values(network)
    velocity = {name: np.zeros_like(value) for name, value in wanted.items()}
    for round_ in range(2):  # the second starts its sum anew
        parts = [batch(10 * round_ + i) for i in range(3)]
        images, labels = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        expected, gradients = gradient(wanted, images, labels)
        loss, _ = step([inputs(*part) for part in parts], control())
        assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)
        velocity = {name: 0.9 * velocity[name] + g for name, g in gradients.items()}
        wanted = {name: value - 0.1 * velocity[name] for name, value in wanted.items()}
        close(network, wanted)


def test_clipping_is_by_the_global_norm() -> None:
    network = Linear()
    before, (images, labels, others) = values(network), batch(1)
    _, gradients = gradient(before, images, labels)
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    limit = float(norm / 4)
    TrainStep(network, recipe(clip_grad=True, clip_value=limit), 1)([inputs(images, labels, others)], control())
    close(network, {name: before[name] - 0.1 * g / 4 for name, g in gradients.items()})


def test_mixup_is_the_loss_to_both_labels() -> None:
    network = Linear()
    before, (images, labels, others) = values(network), batch(1)
    loss, _ = TrainStep(network, recipe(mixup=0.2), 1)([inputs(images, labels, others)], control(lam=0.7))
    expected = 0.7 * gradient(before, images, labels)[0] + 0.3 * gradient(before, images, others)[0]
    assert float(loss.asnumpy()) == pytest.approx(expected, rel=1e-5)


def test_dropout_mask_enters_as_an_input() -> None:
    network = Linear()
    before, (images, labels, others) = values(network), batch(1)
    mask = np.random.default_rng(3).integers(0, 2, (BATCH, FEATURES)).astype(np.float32) * 2
    loss, _ = TrainStep(network, recipe(drop_rate=0.5), 1)([inputs(images, labels, others, mask)], control())
    dropped = (images.reshape(BATCH, -1) * mask).reshape(images.shape)
    assert float(loss.asnumpy()) == pytest.approx(gradient(before, dropped, labels)[0], rel=1e-5)


def test_fixed_loss_scale_changes_no_bit() -> None:
    networks = Linear(), Linear()
    for network, scale in zip(networks, (1.0, 1024.0), strict=True):
        step = TrainStep(network, recipe(loss_scale=scale), 1)
        losses = [float(step([inputs(*batch(i))], control())[0].asnumpy()) for i in range(3)]
        print(losses)
    for name, array in values(networks[0]).items():
        assert (array == values(networks[1])[name]).all(), name


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_overflow_changes_nothing_but_the_dynamic_scale(opt: str) -> None:
    network = Linear()
    asked = recipe(opt=opt, loss_scale_type="dynamic", loss_scale=1024.0, ema=True, clip_grad=True)
    step = TrainStep(network, asked, 1)
    step.start_average()
    step([inputs(*batch(1))], control(decay=0.9))
    before, state = values(network), step.state()
    images, labels, others = batch(2)
    images[0] = np.inf
    step([inputs(images, labels, others)], control(decay=1.0))
    close(network, before)
    assert (step.scale(), state["loss_scale"]) == (512.0, 1024.0)
    for name, array in step.state().items():
        if not name.startswith("loss_scale"):
            assert (array == state[name]).all(), name
    step([inputs(*batch(3))], control(decay=0.9))
    assert not (network.weight.asnumpy() == before["cls.weight"].astype(np.float32)).all(), "and it goes on"


def test_average_follows_the_weights_and_starts_where_they_are() -> None:
    network = Linear()
    step = TrainStep(network, recipe(ema=True), 1)
    network.weight.set_data(network.weight + 1)  # as loaded weights would be
    step.start_average()
    wanted = values(network)
    for i in range(3):
        step([inputs(*batch(i))], control(decay=0.8))
        wanted = {name: 0.8 * wanted[name] + 0.2 * value for name, value in values(network).items()}
        for name, average in wanted.items():
            np.testing.assert_allclose(step.average()[name], average, rtol=1e-5, atol=1e-6)


def test_average_decay_grows_from_nothing_to_its_value() -> None:
    assert average_decay(0.9999, 0) == pytest.approx(0.9999 * 0.0005, rel=1e-3)
    assert average_decay(0.9999, 10**6) == pytest.approx(0.9999)


def test_wish_to_stop_travels_with_the_gradients() -> None:
    network = Linear()
    _, stop = TrainStep(network, recipe(), 1, accumulation=2)([inputs(*batch(i)) for i in range(2)], control(stop=1))
    assert float(stop.asnumpy()) > 0
