"""The shape of ReXNet 0.9 as numbers, for the peers of the step's benchmark; imports nothing."""

STEM, LAST, CLASSES = 32, 1152, 1000
STAGES = ((1, 1, False), (2, 2, False), (2, 2, True), (3, 2, True), (3, 1, True), (5, 2, True))  # blocks, stride, gate
WIDTH, FIRST, ADDED, NUM_BLOCKS = 0.9, 16, 180, 16


def blocks() -> list[tuple[int, int, int, int, bool]]:
    """(in, wide, out, stride, gated) of the 16 bottlenecks."""
    found: list[tuple[int, int, int, int, bool]] = []
    planes, before = FIRST / WIDTH, STEM
    for count, stride, gated in STAGES:
        for i in range(count):
            after = round(planes * WIDTH)
            found.append((before, before * (6 if found else 1), after, stride if i == 0 else 1, gated))
            before, planes = after, planes + ADDED / NUM_BLOCKS
    return found
