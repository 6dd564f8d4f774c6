"""Binary masks as rows of 64-bit words: one NumPy operation touches many thousand pixels."""

from __future__ import annotations

from math import isqrt

import numpy as np
import numpy.typing as npt

from pdnet.errors import DataError

WORD = 64

#: (..., H, words) uint64: bit i of word w is column 64 w + i; bits beyond the width are zero.
Bits = npt.NDArray[np.uint64]


def pack(masks: tuple[npt.ArrayLike, ...]) -> tuple[Bits, int]:
    """Pack masks of one size; every non-zero value is foreground.

    Args:
        masks: (H, W) each, of any boolean, integer or floating dtype and any memory layout.

    Returns:
        (len(masks), H, ceil(W / 64)) words, and the width W.

    Raises:
        DataError: a mask is not a non-empty two-dimensional array of numbers, or the sizes differ.
    """
    arrays = [np.asarray(mask) for mask in masks]
    for array in arrays:
        if array.dtype.kind not in "buif":
            raise DataError(f"a mask must hold booleans or numbers, found dtype {array.dtype}")
        if array.ndim != 2 or array.size == 0:
            raise DataError(f"a mask must be two-dimensional (H, W) and not empty, found shape {array.shape}")
        if array.shape != arrays[0].shape:
            raise DataError(f"masks differ in size (H, W): {arrays[0].shape} and {array.shape}")
    height, width = arrays[0].shape
    bits = np.zeros((len(arrays), height, _words(width)), dtype="<u8")  # little-endian: bytes in order of column
    octets = bits.view(np.uint8)[:, :, : -(-width // 8)]
    for array, target in zip(arrays, octets, strict=True):
        # packbits takes every non-zero byte for 1: these two dtypes need no comparison.
        binary = array if array.dtype in (np.bool_, np.uint8) else array != 0
        target[:] = np.packbits(binary, axis=1, bitorder="little")
    return bits.astype(np.uint64, copy=False), width


def count(bits: Bits) -> int:
    """The number of foreground pixels."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def boundaries(bits: Bits, width: int) -> Bits:
    """The pixels that differ from their right, lower or lower-right neighbour; the image border is no boundary.

    In the last row the right neighbour alone counts, in the last column the lower one alone.

    Args:
        bits: (n, H, words).
        width: W in pixels.
    """
    stream = bits.reshape(-1)
    right = stream ^ (stream >> np.uint64(1))
    right[:-1] ^= stream[1:] << np.uint64(WORD - 1)
    boundary = right.reshape(bits.shape)
    # The last column has no right neighbour, and bits beyond the width are nobody's.
    boundary[:, :, -1] &= np.uint64((1 << ((width - 1) % WORD)) - 1)
    below = bits[:, :-1] ^ bits[:, 1:]
    # Lower-right: where a pixel equals the one below, it differs from the lower-right one exactly if that one does.
    below |= boundary[:, 1:]
    boundary[:, :-1] |= below
    return boundary


def crop_to_foreground(bits: Bits, width: int) -> tuple[Bits, int]:
    """Cut maps to the rows and words that hold foreground of any, and the pixels around it as far as there are some.

    The boundaries of the cut maps are those of the whole ones.

    Args:
        bits: (n, H, words).
        width: W in pixels.

    Returns:
        (n, h, w) view and its width in pixels; h is 0 where all maps are empty.
    """
    union = np.bitwise_or.reduce(bits, axis=0)
    rows = np.flatnonzero(np.bitwise_or.reduce(union, axis=1)).tolist()
    if not rows:
        return bits[:, :0], width
    top, bottom = max(rows[0] - 1, 0), rows[-1] + 2
    line = np.bitwise_or.reduce(union[top:bottom], axis=0)
    columns = np.flatnonzero(line).tolist()
    # A neighbour of a word's first or last pixel lies in the next word.
    left = max(columns[0] - (int(line[columns[0]]) & 1), 0)
    right = columns[-1] + (int(line[columns[-1]]) >> (WORD - 1)) + 1
    return bits[:, top:bottom, left:right], min(WORD * right, width) - WORD * left


def dilate_disk(bits: Bits, radius: int) -> Bits:
    """Dilate each map by the disk dx² + dy² <= radius²; outside the image counts as 0.

    A row offset dy of the disk is a horizontal run of half-width isqrt(radius² - dy²), and a run is a dilation of the
    shorter ones: each distinct half-width is made once from the one before, then joined at all its row offsets.

    Args:
        bits: (n, H, words).
        radius: in pixels, >= 0.

    Returns:
        (n, H, words); bits beyond the width may be set.
    """
    n, height, words = bits.shape
    # One stream of bits for all rows: what a shift carries out of a row must end in padding before the next.
    stride = words + _words(radius)
    run = np.zeros((n, height * stride), dtype=np.uint64)
    run.reshape(n, height, stride)[:, :, :words] = bits
    disk = np.zeros_like(run)
    half_width = 0
    for offset in range(min(radius, height - 1), -1, -1):
        wider = isqrt(radius * radius - offset * offset)
        _widen(run.reshape(-1), half_width, wider)
        half_width = wider
        shift = offset * stride
        disk[:, shift:] |= run[:, : run.shape[1] - shift]
        disk[:, : run.shape[1] - shift] |= run[:, shift:]
    return disk.reshape(n, height, stride)[:, :, :words]


def _widen(stream: Bits, half_width: int, target: int) -> None:
    """Widen, in place, runs of `half_width` to runs of `target` in one stream of words."""
    while half_width < target:
        # A copy may have lost its outer half at an end of the stream; the inner half must still touch the middle one.
        step = min(target - half_width, half_width + 1, WORD - 1)
        shift, carry = np.uint64(step), np.uint64(WORD - step)
        moved = stream << shift
        part = stream >> carry
        moved[1:] |= part[:-1]
        np.right_shift(stream, shift, out=part)
        moved |= part
        np.left_shift(stream, carry, out=part)
        moved[:-1] |= part[1:]
        stream |= moved
        half_width += step


def _words(pixels: int) -> int:
    return -(-pixels // WORD)
