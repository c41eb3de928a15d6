"""A run's state on the host: where it lies in memory, and a copy of it that is a safetensors file already.

The copy is all that a step waits for, so it is made of few and cheap parts: memory that was written before (the first
touch of a page costs as much as copying it), one block for each parameter, no serialisation afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mindspore import Parameter

Array = np.ndarray[Any, Any]
# https://github.com/huggingface/safetensors: names of element types, and a header that ends on a multiple of 8 bytes
_TYPES = {
    np.dtype(kind): name
    for kind, name in ((np.float64, "F64"), (np.float32, "F32"), (np.float16, "F16"), (np.int64, "I64"),
                       (np.int32, "I32"), (np.int16, "I16"), (np.int8, "I8"), (np.uint64, "U64"), (np.uint32, "U32"),
                       (np.uint16, "U16"), (np.uint8, "U8"), (np.bool_, "BOOL"))
}  # fmt: skip
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A parameter, and names and shapes of the arrays that lie in it one after the other."""

    parameter: Parameter
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def whole(cls, parameter: Parameter) -> Source:
        """The parameter as one array of its own name."""
        return cls(parameter, ((str(parameter.name), tuple(parameter.shape)),))

    @classmethod
    def vector(cls, parameter: Parameter, over: Sequence[Parameter], prefix: str) -> Source:
        """A vector over all of these parameters, told apart as `<prefix><name>`."""
        return cls(parameter, tuple((prefix + str(one.name), tuple(one.shape)) for one in over))

    def read(self) -> Array:
        """Its elements (k,), in memory that the next step changes where the device is the CPU."""
        array: Array = self.parameter.asnumpy().reshape(-1)
        return array[: sum(math.prod(shape) for _, shape in self.parts)]


class State:
    """All that a resume needs, where it lies now.

    `asnumpy` takes 15 us for each of 354 parameters, as long as copying them (measured). So on the CPU its views are
    used again for as long as every parameter says that it still lies at the address of its view. On another device
    `asnumpy` copies, each time.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        import mindspore as ms

        self.sources = tuple(sources)
        self._parameters = [source.parameter for source in sources]
        self._may_alias = ms.get_context("device_target") == "CPU"
        self._views: list[Array] = []
        self._addresses: list[int] = []

    def read(self) -> list[Array]:
        """The elements of each source; to be called when the step's loss has been read, and nothing runs."""
        if not (self._may_alias and self._addresses == [parameter.data_ptr() for parameter in self._parameters]):
            self._views = [source.read() for source in self.sources]
            self._addresses = [view.ctypes.data for view in self._views]
        return self._views


class Image:
    """A safetensors file in memory that is allocated once and written many times."""

    def __init__(self, state: State) -> None:
        """TypeError if the state has elements that the format does not know."""
        self._state = state
        views = state.read()
        order = sorted(range(len(views)), key=lambda i: -views[i].itemsize)  # so each is aligned
        header: dict[str, dict[str, Any]] = {}
        starts, offset = [0] * len(views), 0
        for i in order:
            kind, starts[i] = views[i].dtype, offset
            for name, shape in state.sources[i].parts:
                if kind not in _TYPES:
                    raise TypeError(f"{name}: safetensors has no name for elements of type {kind}")
                end = offset + math.prod(shape) * kind.itemsize
                header[name] = {"dtype": _TYPES[kind], "shape": shape, "data_offsets": (offset, end)}
                offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        begin = 8 + len(text)
        self._bytes = np.empty(begin + offset, np.uint8)
        self._bytes[:begin] = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
        self._places = [
            self._bytes[begin + start : begin + start + view.nbytes].view(view.dtype)
            for start, view in zip(starts, views, strict=True)
        ]

    def copy(self) -> None:
        """Take the state as it is now."""
        for place, view in zip(self._places, self._state.read(), strict=True):
            np.copyto(place, view, casting="no")

    @property
    def body(self) -> memoryview:
        """The file; it changes with the next `copy`."""
        return self._bytes.data
