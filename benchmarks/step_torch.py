"""A worker of the step's benchmark: ReXNet 0.9 on PyTorch.

    python -m benchmarks.step_torch contiguous|channels_last BATCH SIZE

Eager, float32, all CPUs of the affinity mask: forward, backward, SGD with momentum.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.rexnet_shape import CLASSES, LAST, STEM, blocks
from benchmarks.worker import serve


def unit(before: int, after: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, act: Any = None) -> list[Any]:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after), *([act] if act else [])]


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // 12
        self.layers = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), nn.BatchNorm2d(reduced), nn.ReLU(inplace=True),
            nn.Conv2d(reduced, channels, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return x * self.layers(x.mean((2, 3), keepdim=True))


class Block(nn.Module):
    def __init__(self, before: int, wide: int, after: int, stride: int, gated: bool) -> None:
        super().__init__()
        expand = unit(before, wide, act=nn.SiLU(inplace=True)) if wide != before else []
        gate = [Gate(wide)] if gated else []
        self.layers = nn.Sequential(
            *expand,
            *unit(wide, wide, kernel=3, stride=stride, groups=wide),
            *gate,
            nn.ReLU6(inplace=True),
            *unit(wide, after),
        )
        self.before, self.shortcut = before, stride == 1 and before <= after

    def forward(self, x: Any) -> Any:
        out = self.layers(x)
        if not self.shortcut:
            return out
        return torch.cat([out[:, : self.before] + x, out[:, self.before :]], dim=1)  # as timm's ReXNet has it


def make_step(layout: str, batch: int, size: int) -> Callable[[], None]:
    torch.manual_seed(0)
    shape = blocks()
    network = nn.Sequential(
        *unit(3, STEM, kernel=3, stride=2, act=nn.SiLU(inplace=True)), *(Block(*block) for block in shape),
        *unit(shape[-1][2], LAST, act=nn.SiLU(inplace=True)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(LAST, CLASSES),
    )  # fmt: skip
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, CLASSES, (batch,))
    if layout == "channels_last":
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(network(images), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    began = time.perf_counter()
    serve(make_step(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), began)
