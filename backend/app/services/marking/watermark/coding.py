"""A watermark's bits: 32 of payload with a checksum, protected so that half of them may be lost.

Duty: payload → signs to write; soft readings of those signs → payload, or nothing.
Sources: the convolutional code of constraint length 7 and rate 1/3 (generators 133, 171, 165 octal)
with its Viterbi decoder; CRC-16 with the polynomial 0x1021.
Must not know: pictures.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

PAYLOAD_BITS = 32
_CRC_BITS = 16
_MEMORY = 6
_GENERATORS = (0o133, 0o171, 0o165)
_STATES = 1 << _MEMORY
_STEPS = PAYLOAD_BITS + _CRC_BITS + _MEMORY
CODED_BITS = _STEPS * len(_GENERATORS)

Reals = NDArray[np.float64]


def encode(payload: int) -> Reals:
    """The signs, -1 or 1, that stand for `payload` (32 bits): shape (CODED_BITS,)."""
    word = payload << _CRC_BITS | _crc(payload)
    _, signs = _trellis()
    state, coded = 0, []
    for step in range(_STEPS):
        place = PAYLOAD_BITS + _CRC_BITS - 1 - step
        bit = word >> place & 1 if place >= 0 else 0  # the tail leads back to state 0
        coded.append(signs[state, bit])
        state = _next(state, bit)
    return np.concatenate(coded)


def decode(readings: Reals) -> int | None:
    """The payload whose signs agree best with `readings`; None where its checksum is wrong."""
    nexts, signs = _trellis()
    soft = readings.reshape(_STEPS, len(_GENERATORS))
    score = np.full(_STATES, -np.inf)
    score[0] = 0.0
    came_from = np.empty((_STEPS, _STATES), np.int64)
    # Two ways lead into each state: from `state >> 1`'s pair, both with the bit `state & 1`.
    before = np.argsort(nexts.ravel(), kind="stable").reshape(_STATES, 2)
    for step in range(_STEPS):
        gains = score[:, None] + signs @ soft[step]
        into = gains.ravel()[before]
        best = into.argmax(axis=1)
        came_from[step] = before[np.arange(_STATES), best]
        score = into[np.arange(_STATES), best]
    state, word = 0, 0
    for step in reversed(range(_STEPS)):
        state, bit = divmod(int(came_from[step, state]), 2)
        place = PAYLOAD_BITS + _CRC_BITS - 1 - step
        if place >= 0:
            word |= bit << place
    payload, crc = word >> _CRC_BITS, word & (1 << _CRC_BITS) - 1
    return payload if _crc(payload) == crc else None


def _next(state: int, bit: int) -> int:
    return (state << 1 | bit) & _STATES - 1


@functools.cache
def _trellis() -> tuple[NDArray[np.int64], Reals]:
    """By state and bit: the next state, and the signs that are written."""
    nexts = np.empty((_STATES, 2), np.int64)
    signs = np.empty((_STATES, 2, len(_GENERATORS)))
    for state in range(_STATES):
        for bit in (0, 1):
            register = state << 1 | bit
            nexts[state, bit] = _next(state, bit)
            signs[state, bit] = [
                1.0 - 2.0 * ((register & taps).bit_count() % 2) for taps in _GENERATORS
            ]
    return nexts, signs


def _crc(payload: int) -> int:
    register = 0xFFFF  # so that a payload of zeros has a checksum of its own
    for byte in payload.to_bytes(PAYLOAD_BITS // 8, "big"):
        register ^= byte << 8
        for _ in range(8):
            register = (register << 1 ^ (0x1021 if register & 0x8000 else 0)) & 0xFFFF
    return register
