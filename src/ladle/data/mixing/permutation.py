"""A random order that is computed, not stored: a keyed permutation of 0 … size-1 with random access.

A Feistel network over the smallest even number of bits that holds `size`, with splitmix64's finalizer as its round
function; results outside the range are permuted again until they fall inside (cycle walking), which keeps it a
permutation. Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), method 2 and 3.
"""

from __future__ import annotations

import numpy as np
from blake3 import blake3
from numba import njit, uint64

from ladle.artifacts.files import canonical_json

ROUNDS = 8


def permutation_key(*parts: str | int) -> np.uint64:
    """Return the key that names a permutation, such as (seed, source, epoch)."""
    return np.uint64(int.from_bytes(blake3(canonical_json(parts).encode()).digest(8), "little"))


def permute(positions: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """Return what stands at each position (u8) of the shuffled sequence 0 … size-1."""
    return _permute_all(positions.astype(np.uint64), np.uint64(size), key)


@njit(cache=True)
def permute_one(position: np.uint64, size: np.uint64, key: np.uint64) -> np.uint64:
    """Return what stands at one position (u8) of the shuffled sequence 0 … size-1."""
    half = half_bits(size)
    mask = (uint64(1) << half) - uint64(1)
    value = position
    while True:
        left, right = value >> half, value & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (_mix(right + key + uint64(number) * uint64(0x9E3779B97F4A7C15)) & mask)
        value = (left << half) | right
        if value < size:
            return value


@njit(cache=True)
def half_bits(size: np.uint64) -> np.uint64:
    """Return half the number of bits of the smallest even-bit range that holds `size` values, and at least 4.

    Halves of one or two bits leave some orders of a few items up to 10 % likelier than others.
    """
    half = uint64(4)
    while half < uint64(32) and (uint64(1) << (uint64(2) * half)) < size:
        half += uint64(1)
    return half


@njit(cache=True)
def _permute_all(positions: np.ndarray, size: np.uint64, key: np.uint64) -> np.ndarray:
    result = np.empty_like(positions)
    for index in range(len(positions)):
        result[index] = permute_one(positions[index], size, key)
    return result


@njit(cache=True)
def _mix(value: np.uint64) -> np.uint64:
    """splitmix64's finalizer (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value ^ (value >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> uint64(27))) * uint64(0x94D049BB133111EB)
    return value ^ (value >> uint64(31))
