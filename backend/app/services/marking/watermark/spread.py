"""A watermark in a picture's brightness: a pattern of long waves, repeated over the picture.

Duty: pixels and 32 bits → pixels that look the same; anybody's pixels → those bits, or nothing.
Must not know: files, contents.

A tile of 64 x 64 cells holds about 200 waves, none shorter than 5 cells: they outlive half the
size, and JPEG rounds them least. The phase of each wave stands for two signs of the code (see
`coding`), of a third of them for nothing but where the tile begins. The reader takes the picture's
own content away, weighs each place by how quiet it is, lays all tiles on one another for each
period that a scaled copy may have, and asks a Fourier transform where the known waves begin. A
reading counts where these stand out, the checksum is right, and the waves agree with the code more
than chance would have it.

Nothing here is secret: who reads this can read such a mark, and also remove or forge one.
All that the pixels depend on is whole numbers, so that each computer writes the same ones.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.services.marking.watermark.coding import CODED_BITS, Reals, decode, encode

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]
Waves = NDArray[np.complex128]

SMALLEST_SIDE = 128  # px: in less there is too little room at this strength

_CELLS = 64
_LONGEST, _SHORTEST = 3.5, 12.2  # waves a tile
_PILOTS = 0.33
_KEY = 20_261_127
_COARSE_FROM = 256  # px, the shorter side: from here on a cell has 2 x 2 pixels
_PSNR_DB = {1: 38.6, 2: 41.0}  # by pixels a cell
_UNIT = 512  # a tile's 1.0 in whole numbers
_STRENGTH_UNIT, _STRONGEST = 64, 24 * 64  # in levels of 255
_SAMPLED_FROM = 2**17  # pixels

_WINDOW = 768  # px
_PERIODS = (*range(28, 74), *range(74, 162, 2))  # px
# How far around a pixel its own content is told from the pattern, by the period that is tried.
_REACHES = ((2, 48), (3, 96), (6, 162))
_NOISE = 30.0  # what a quiet place counts as, in squared levels
_FINE = 128  # places of the tile's beginning that are told apart, a side
_TRIED = 4  # periods
_MIN_PEAK = 5.0
_MIN_AGREEMENT = 0.6


@dataclass(frozen=True)
class Reading:
    """What was found.

    Attributes:
        payload: 32 bits.
        period: px of a tile as the picture is now; as it was drawn it had 64 or 128.
        agreement: of the waves with the code, 0..1; chance gives 0.54 ± 0.02.
    """

    payload: int
    period: int
    agreement: float


@dataclass(frozen=True)
class _Plan:
    """The waves, in waves a tile down and across, their phases, and what each stands for."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    phases: Waves  # of length 1
    pilot: NDArray[np.bool_]
    real_sign: NDArray[np.int64]  # which of the code's signs the real part has
    other_sign: NDArray[np.int64]  # and which the imaginary part


def mark(pixels: Pixels, payload: int) -> Pixels:
    """`pixels` (height, width, 3; sides from `SMALLEST_SIDE`) with `payload` (32 bits) in them."""
    height, width = pixels.shape[:2]
    cell = 2 if min(height, width) >= _COARSE_FROM else 1
    tile = _tile(payload, cell)
    repeats = (-(-height // len(tile)), -(-width // len(tile)))
    pattern = np.tile(tile, repeats)[:height, :width]
    allowed = 255.0**2 / 10 ** (_PSNR_DB[cell] / 10)
    step = 4 if height * width >= _SAMPLED_FROM else 1
    sample, sample_pattern = pixels[::step, ::step], pattern[::step, ::step]
    low, high = 0, _STRONGEST
    while high - low > 1:
        strength = (low + high) // 2
        if _error(sample, _changed(sample, sample_pattern, strength)) <= allowed:
            low = strength
        else:
            high = strength
    marked = _changed(pixels, pattern, low)
    while _error(pixels, marked) > allowed:  # the sample was not like the whole
        low = low * 31 // 32
        marked = _changed(pixels, pattern, low)
    return marked


def read(pixels: Pixels) -> Reading | None:
    """The watermark in a picture (height, width, 3), also in a scaled or cut copy; None: none.

    It looks at the middle 768 x 768 px, so that no picture takes longer than those.
    """
    light = _middle(pixels).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if min(light.shape) < _PERIODS[0]:
        return None
    weighed = {reach: _weighed(light, reach) for reach, _ in _REACHES}
    waves = np.stack(
        [
            _waves(weighed[next(reach for reach, below in _REACHES if period < below)], period)
            for period in _PERIODS
        ]
    )
    surfaces = _surfaces(waves, _CELLS)
    peaks = surfaces.max(axis=(1, 2)) / (surfaces.std(axis=(1, 2)) + 1e-30)
    for candidate in np.argsort(-peaks)[:_TRIED]:
        surface = _surfaces(waves[candidate : candidate + 1], _FINE)[0]
        place = int(surface.argmax())
        if surface.flat[place] < _MIN_PEAK * surface.std() + 1e-30:
            continue
        found = _decoded(waves[candidate], divmod(place, _FINE))
        if found is not None:
            return Reading(found[0], _PERIODS[candidate], found[1])
    return None


@functools.cache
def _plan() -> _Plan:
    reach = int(_SHORTEST)
    rows, columns = np.mgrid[-reach : reach + 1, 0 : reach + 1]
    radius = np.hypot(rows, columns)
    is_used = (radius >= _LONGEST) & (radius <= _SHORTEST) & ((columns > 0) | (rows > 0))
    rows, columns = rows[is_used], columns[is_used]
    # This generator's whole numbers are the same in every version of numpy.
    draw = np.random.PCG64(_KEY).random_raw
    order = np.argsort(draw(len(rows)), kind="stable")
    turns = (draw(len(rows)) >> np.uint64(11)).astype(np.float64) / 2**53
    pilots = int(_PILOTS * len(rows))
    pilot = np.zeros(len(rows), bool)
    pilot[order[:pilots]] = True
    real_sign, other_sign = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    places = np.arange(len(rows) - pilots)
    real_sign[order[pilots:]] = places * 2 % CODED_BITS
    other_sign[order[pilots:]] = (places * 2 + 1) % CODED_BITS
    return _Plan(rows, columns, np.exp(2j * np.pi * turns), pilot, real_sign, other_sign)


def _tile(payload: int, cell: int) -> NDArray[np.int32]:
    """The pattern, of mean 0 and standard deviation `_UNIT`."""
    plan, code = _plan(), encode(payload)
    data = (code[plan.real_sign] + 1j * code[plan.other_sign]) / np.sqrt(2)
    waves = np.where(plan.pilot, 1.0, data) * plan.phases
    side = _CELLS * cell
    spectrum = np.zeros((side, side), np.complex128)
    spectrum[plan.rows % side, plan.columns] = waves
    spectrum[-plan.rows % side, -plan.columns % side] = waves.conj()
    tile = np.fft.ifft2(spectrum).real
    whole: NDArray[np.int32] = np.rint(_UNIT * tile / tile.std()).astype(np.int32)
    return whole


def _changed(pixels: Pixels, pattern: NDArray[np.int32], strength: int) -> Pixels:
    unit = _UNIT * _STRENGTH_UNIT
    change = ((pattern * strength + unit // 2) // unit).astype(np.int16)
    marked: Pixels = np.clip(pixels + change[:, :, None], 0, 255).astype(np.uint8)
    return marked


def _error(pixels: Pixels, other: Pixels) -> float:
    """The mean squared difference."""
    difference = np.subtract(pixels, other, dtype=np.int16)  # its squares fit, too
    return int(np.square(difference).sum(dtype=np.int64)) / difference.size


def _middle(pixels: Pixels) -> Pixels:
    top, left = (max(0, (side - _WINDOW) // 2) for side in pixels.shape[:2])
    return pixels[top : top + _WINDOW, left : left + _WINDOW]


def _weighed(light: Plane, reach: int) -> Plane:
    """The picture without its own content, and less of it where that was lively."""
    rest = light - _mean(light, reach)
    weighed: Plane = rest / (_mean(rest * rest, reach) + np.float32(_NOISE))
    return weighed


def _mean(plane: Plane, reach: int) -> Plane:
    """The mean of the (2 reach + 1)² pixels around each; beyond the edge the edge goes on."""
    size = 2 * reach + 1
    for _ in range(2):  # along one axis, then along the other
        padded = np.pad(plane, ((reach + 1, reach), (0, 0)), mode="edge")
        total = np.cumsum(padded, axis=0, dtype=np.float64)
        plane = ((total[size:] - total[:-size]) / size).astype(np.float32).T
    return plane


def _waves(rest: Plane, period: int) -> Waves:
    """The tile's waves, all tiles laid on one another."""
    height, width = (-(-side // period) * period for side in rest.shape)
    padded = np.zeros((height, width), np.float32)
    padded[: rest.shape[0], : rest.shape[1]] = rest
    rows = padded.reshape(-1, period, width).sum(axis=0)
    folded = rows.reshape(period, -1, period).sum(axis=1, dtype=np.float64)
    plan = _plan()
    waves: Waves = np.fft.fft2(folded)[plan.rows % period, plan.columns % period]
    waves /= np.sqrt(np.abs(waves) + 1e-12)  # a loud wave is mostly the picture's own
    return waves


def _surfaces(waves: Waves, grid: int) -> Reals:
    """(N, grid, grid): how well the pilot fits for each place where the tile may begin."""
    plan = _plan()
    pilot = plan.pilot
    spectrum = np.zeros((len(waves), grid, grid), np.complex128)
    spectrum[:, plan.rows[pilot] % grid, plan.columns[pilot]] = (
        waves[:, pilot] * plan.phases[pilot].conj()
    )
    surfaces: Reals = np.fft.ifft2(spectrum).real
    return surfaces


def _decoded(waves: Waves, place: tuple[int, int]) -> tuple[int, float] | None:
    """Payload and agreement of a tile that begins at `place` of `_FINE`."""
    plan = _plan()
    turn = np.exp(2j * np.pi * (plan.rows * place[0] + plan.columns * place[1]) / _FINE)
    data = ~plan.pilot
    turned = (waves * turn * plan.phases.conj())[data]
    soft: Reals = np.zeros(CODED_BITS)
    soft += np.bincount(plan.real_sign[data], turned.real, CODED_BITS)
    soft += np.bincount(plan.other_sign[data], turned.imag, CODED_BITS)
    payload = decode(soft)
    length = float(np.linalg.norm(soft)) * np.sqrt(CODED_BITS)
    if payload is None or length == 0:
        return None
    agreement = float(soft @ encode(payload)) / length
    return (payload, agreement) if agreement >= _MIN_AGREEMENT else None
