"""Where some of many places are, in few bits: the gaps between them, Golomb-Rice coded.

"Run-Length Encodings", IEEE Transactions on Information Theory 1966; with remainders of whole bits,
"Some Practical Universal Noiseless Coding Techniques", JPL 1979. A gap g is g mod 2^r in r bits,
and ⌊g / 2^r⌋ as so many zeros before a one. All remainders stand first.
"""

import math

import numpy as np


def write_gaps(places: np.ndarray, length: int) -> np.ndarray:
    """Write places.

    Args:
        places: int64 [k], rising, from 0 to length - 1.
        length: of how many places they are.

    Returns:
        uint8 [bytes]; at one place of ten some 4.75 bits for each.
    """
    bits = _remainder_bits(len(places), length)
    gaps = np.diff(places, prepend=-1) - 1
    remainders = gaps[:, None] >> np.arange(bits)[::-1] & 1
    ends = (gaps >> bits).cumsum() + np.arange(len(gaps))
    ones = np.zeros(ends[-1] + 1 if len(ends) else 0, dtype=np.uint8)
    ones[ends] = 1
    return np.packbits(np.concatenate([remainders.astype(np.uint8).ravel(), ones]))


def read_gaps(coded: np.ndarray, count: int, length: int) -> np.ndarray:
    """Read places.

    Args:
        coded: what `write_gaps` wrote.
        count: k, how many places there are.
        length: of how many they are.

    Returns:
        int64 [k], rising.

    Raises:
        ValueError: it is not what is written of so many places.
    """
    bits = _remainder_bits(count, length)
    most = count * (bits + 1) + (length >> bits)
    stream = np.unpackbits(coded[: most // 8 + 2])  # whatever was sent, no more memory than that
    remainders, ones = stream[: bits * count], stream[bits * count :]
    ends = np.flatnonzero(ones)
    used = bits * count + (int(ends[-1]) + 1 if len(ends) else 0)
    if len(ends) == count and len(stream) == -(-used // 8) * 8:
        gaps = np.diff(ends, prepend=-1) - 1
        for bit in remainders.reshape(count, bits).T:
            gaps = gaps << 1 | bit
        places = (gaps + 1).cumsum() - 1
        if not count or places[-1] < length:
            return places
    raise ValueError(f"not {count} places among {length} weights")


def _remainder_bits(count: int, length: int) -> int:
    """Choose r for gaps as long as they are on average, which both ends know."""
    return max(0, round(math.log2(math.log(2) * length / count))) if count else 0
