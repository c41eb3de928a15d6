"""The shape of ReXNet 0.9 for the peers of the step's benchmark, one of which runs in PyTorch's own interpreter.

It imports what needs no package at all.
"""

from rexnet import architecture

_WIDTH = architecture.MODELS["rexnet_09"]
STEM, LAST, CLASSES = architecture.blocks(_WIDTH)[0].before, architecture.last_channels(_WIDTH), 1000


def blocks() -> list[tuple[int, int, int, int, bool]]:
    """(in, wide, out, stride, gated) of the 16 bottlenecks."""
    return [
        (block.before, block.channels, block.after, block.stride, block.gated) for block in architecture.blocks(_WIDTH)
    ]
