"""Bit patterns that are hard to average: ties, cancelling exponents, subnormals, signed zeros, the largest numbers."""

from __future__ import annotations

import numpy as np

from ladle.soup.formats import FLOATS

KINDS = ("checkpoints", "any", "near", "cancelling", "subnormal", "ties", "tiny and large", "zeros")


def hard_rows(kind: str, dtype: str, num_members: int, columns: int, seed: int) -> np.ndarray:
    """Return (members, columns) bits of finite numbers."""
    form, rng = FLOATS[dtype], np.random.default_rng(seed)
    shape = (num_members, columns)

    def magnitudes(low: int, high: int) -> np.ndarray:
        return rng.integers(low, high, shape, dtype=np.uint64)

    base = rng.integers(0, form.infinity, columns, dtype=np.uint64)
    signs = rng.integers(0, 2, shape, dtype=np.uint64) * np.uint64(form.sign)
    one = np.uint64(form.bias << form.fraction)  # the bits of 1.0
    if kind == "checkpoints":
        values = rng.normal(0, 0.02, columns) + rng.normal(0, 0.0008, shape)
        return _round(values, dtype)
    if kind == "any":
        bits = magnitudes(0, form.infinity) | signs
    elif kind == "near":  # neighbours of one number: means fall on and between the numbers of the format
        bits = np.clip(base.astype(np.int64) + rng.integers(-3, 4, shape), 0, form.infinity - 1).astype(np.uint64)
    elif kind == "cancelling":  # a pair that cancels, and far smaller numbers that then decide
        bits = np.where(rng.random(shape) < 0.5, magnitudes(0, one), magnitudes(0, 1 << (form.fraction + 2))) | signs
        bits[0], bits[-1] = base, base | np.uint64(form.sign)
    elif kind == "subnormal":
        bits = magnitudes(0, 1 << (form.fraction + 1)) | signs
    elif kind == "ties":  # small integers: their means are often halfway between two numbers
        return _round(rng.integers(-(2**form.fraction), 2**form.fraction, shape).astype(np.float64), dtype)
    elif kind == "tiny and large":
        bits = np.where(rng.random(shape) < 0.5, magnitudes(0, 8), magnitudes(form.infinity - 8, form.infinity)) | signs
    else:
        bits = np.where(rng.random(shape) < 0.9, np.uint64(0), magnitudes(0, 3)) | signs
    return bits.astype(form.bits)


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).view(FLOATS[dtype].bits)
