"""Whole numbers in few bits: of one width, or rising ones as Elias and Fano code them."""

import struct

import numpy as np

from stillroom.errors import Refused

HEAD = struct.Struct("<IQ")      # how many numbers, the last of them


def pack(numbers: np.ndarray, width: int) -> np.ndarray:
    """Whole numbers [rows, k] below 2^width → uint8 [rows, ⌈k·width / 8⌉], the highest bit first."""
    each = (numbers[..., None] >> np.arange(width - 1, -1, -1)) & 1                  # [rows, k, width]
    return np.packbits(each.astype(np.uint8).reshape(len(numbers), numbers.shape[1] * width), axis=1)


def unpack(packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """What `pack` was given: int64 [rows, count]."""
    each = np.unpackbits(packed, axis=1, count=count * width).reshape(len(packed), count, width)
    return each.astype(np.int64) @ (1 << np.arange(width - 1, -1, -1))


def rise(numbers: np.ndarray) -> bytes:
    """Numbers [count] from 0 that never fall, in about count·(2 + log2(last / count)) bits and 12 bytes.

    The low bits of each lie side by side; the high ones h_i as a bit string with ones at h_i + i (Elias 1974, Fano 1971). No code
    of such numbers that knows only their count and their last needs less than log2 of their binomial: half a bit a number less.
    """
    count, last = len(numbers), int(numbers[-1]) if len(numbers) else 0
    width = _width(count, last)
    high = np.zeros((last >> width) + count, np.uint8)
    high[(numbers >> width) + np.arange(count)] = 1
    low = pack(numbers[None] & ((1 << width) - 1), width)
    return HEAD.pack(count, last) + low.tobytes() + np.packbits(high).tobytes()


def risen(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `rise` was given, int64 [count], and the bytes that follow it. Raises `Refused` for bytes that it did not write."""
    try:
        count, last = HEAD.unpack(block[: HEAD.size].tobytes())
        width = _width(count, last)
        lows, highs = -(-count * width // 8), -(-((last >> width) + count) // 8)
        low, high, rest = np.split(block[HEAD.size :], [lows, lows + highs])
        ones = np.flatnonzero(np.unpackbits(high, count=(last >> width) + count))
        return (ones - np.arange(count) << width) + unpack(low[None], count, width)[0], rest
    except (struct.error, ValueError) as error:
        raise Refused("these bytes hold no rising numbers", "read them as they were written") from error


def _width(count: int, last: int) -> int:
    """Low bits of each number: ⌊log2(last / count)⌋."""
    return max(0, (last // max(count, 1)).bit_length() - 1)
