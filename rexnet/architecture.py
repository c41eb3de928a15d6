"""The shape of ReXNet as numbers, for the model, its cost and its peers in the benchmarks; imports nothing but Python.

After arXiv 2007.00992, section 3.3, as MindCV builds it.
"""

from __future__ import annotations

from dataclasses import dataclass

MODELS = {"rexnet_09": 0.9, "rexnet_10": 1.0, "rexnet_13": 1.3, "rexnet_15": 1.5, "rexnet_20": 2.0}  # name: width
STAGES = ((1, 1, False), (2, 2, False), (2, 2, True), (3, 2, True), (3, 1, True), (5, 2, True))  # blocks, stride, gated
STEM, FIRST, ADDED, LAST = 32, 16, 180, 1280  # channels at width 1
EXPANSION, GATE_SHARE = 6, 12  # of a block's channels: how many times as many inside, and the gate's part of those


@dataclass(frozen=True, slots=True)
class Block:
    """One bottleneck: 1x1 convolution from `before` to `channels`, depthwise, gate if `gated`, 1x1 to `after`."""

    before: int
    channels: int
    after: int
    stride: int  # of the depthwise convolution
    gated: bool

    @property
    def expands(self) -> bool:
        """Whether it has the first 1x1 convolution."""
        return self.channels != self.before

    @property
    def has_shortcut(self) -> bool:
        """Whether its input is added to the first `before` channels of its output."""
        return self.stride == 1 and self.before <= self.after


def blocks(width: float) -> list[Block]:
    """The 16 bottlenecks; the stem has as many channels as the first one takes. They grow by 180 * width in all."""
    small = max(1.0, 1 / width)  # below width 1 stem and first block keep their channels
    num_blocks = sum(number for number, _, _ in STAGES)
    before, planes = round(STEM * small * width), FIRST * small
    found: list[Block] = []
    for number, stage_stride, gated in STAGES:
        for i in range(number):
            after = round(planes * width)
            channels = before * (EXPANSION if found else 1)
            found.append(Block(before, channels, after, stage_stride if i == 0 else 1, gated))
            before, planes = after, planes + ADDED / num_blocks
    return found


def last_channels(width: float) -> int:
    """Channels of the last convolution, which the classifier takes."""
    return int(LAST * width)


def gate_channels(channels: int) -> int:
    """Channels inside the gate of a block with so many."""
    return channels // GATE_SHARE
