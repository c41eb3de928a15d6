"""A bad cable: carries frames between two network interfaces, each one late, some never.

    wire.py INTERFACE INTERFACE DELAY_S LOSS SEED

In the place of netem, which not every kernel has. Frames are taken and given with their offload header, so large
segments and checksums that the card was to finish pass as they are. Dies with whoever started it.
"""

from __future__ import annotations

import random
import selectors
import socket
import sys
import time
from collections import deque

_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
_ALL_PROTOCOLS = 3
_FRAME_BYTES = 1 << 17  # more than any segment with its headers
_BUFFER_BYTES = 8 << 20


def plug(interface: str) -> socket.socket:
    """A socket that takes every frame which comes out of the interface, and puts frames into it."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    end.bind((interface, _ALL_PROTOCOLS))
    return end


def carry(one: socket.socket, other: socket.socket, *, delay_s: float, loss: float, draw: random.Random) -> None:
    """Carry frames both ways for ever, in their order."""
    on_the_way: deque[tuple[float, socket.socket, bytes]] = deque()
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            wait_s = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
            for key, _ in selector.select(wait_s):
                end: socket.socket = key.fileobj  # type: ignore[assignment]
                frame = end.recv(_FRAME_BYTES)
                if draw.random() >= loss:
                    on_the_way.append((time.monotonic() + delay_s, key.data, frame))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                _, target, frame = on_the_way.popleft()
                target.send(frame)


if __name__ == "__main__":
    near, far, late, lost, seed = sys.argv[1:]
    carry(plug(near), plug(far), delay_s=float(late), loss=float(lost), draw=random.Random(int(seed)))
