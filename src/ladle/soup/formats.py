"""The floating-point formats that are averaged; any other dtype must be equal in all members."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class FloatFormat(NamedTuple):
    """IEEE-like: a sign, an exponent biased by `bias`, and `fraction` bits, in an unsigned integer of `bits`."""

    bits: type[np.unsignedinteger]
    size: int
    """Bytes of a number."""
    fraction: int
    bias: int

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (8 * self.size - 1)

    @property
    def infinity(self) -> int:
        """The bits of positive infinity; larger magnitudes are NaN."""
        return self.sign - (1 << self.fraction)


FLOATS = {
    "BF16": FloatFormat(np.uint16, 2, 7, 127),
    "F16": FloatFormat(np.uint16, 2, 10, 15),
    "F32": FloatFormat(np.uint32, 4, 23, 127),
    "F64": FloatFormat(np.uint64, 8, 52, 1023),
}
"""By the dtype names of safetensors."""


def widest(dtypes: set[str]) -> str:
    """Return the narrowest of the formats that holds every number of `dtypes`; bf16 and fp16 together need fp32."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "F64" if "F64" in dtypes else "F32"


def as_dtype(bits: np.ndarray, source: str, target: str) -> np.ndarray:
    """Return the bits of the same numbers in a wider format."""
    if source == target:
        return bits
    if source == "BF16":
        numbers = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        numbers = bits.view({"F16": np.float16, "F32": np.float32}[source])
    with np.errstate(invalid="ignore"):  # a signalling NaN is quietened, which is no news
        return numbers.astype({"F32": np.float32, "F64": np.float64}[target]).view(FLOATS[target].bits)
