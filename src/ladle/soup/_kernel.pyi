from collections.abc import Sequence

from _typeshed import ReadableBuffer, WriteableBuffer

def average(
    format: int,
    members: Sequence[ReadableBuffer],
    coefficients: Sequence[int],
    denominator: int,
    out_format: int,
    out: WriteableBuffer,
    /,
) -> bool:
    """Fill the buffer `out` with the members' exact weighted mean, rounded once; False if a member is not finite.

    Formats are 0 (bf16), 1 (fp16) or 2 (fp32); the output's is the members' or 2. See `_mean.h`.
    """
