"""PNG files at the speed of the hardware, for pictures that look like photos.

Duty: RGB pixels and texts → a PNG file's bytes, lossless. Must not know: what the picture is of.

Why not Pillow's encoder: it looks for repeated strings, which a photo's grain does not have, and
spends most of its time on that. Here every row is predicted from its neighbours above and to the
left (PNG's filter 3, the mean), in one pass of numpy over the whole picture, and what is left is
coded by zlib with runs and Huffman codes only, strips of it side by side. For grainy pictures that
is smaller than Pillow's default, too. Pictures with large areas of one colour or exact gradients
are the other way round: a sample of rows tells, and those go to Pillow, which is fast on them.
Measured by `benchmarks/bench_png.py`.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_MEAN = 3
_SAMPLE_BANDS, _SAMPLE_ROWS = 6, 5
# Searching for repetitions must shrink the sample to this before Pillow is asked to do it.
_WORTH_SEARCHING = 0.7

_STRIPS, _STRIP_BYTES = 16, 1 << 18
# A zlib stream's head: a window of 32 kB, coded at the fastest level (RFC 1950).
_ZLIB_FASTEST = b"\x78\x01"
_THREADS = ThreadPoolExecutor(min(_STRIPS, os.cpu_count() or 1), thread_name_prefix="png")

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def encode_png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    """`image` (RGB) as a PNG with `texts` by keyword; the same input gives the same bytes."""
    pixels = np.asarray(image)
    if _repeats(pixels):
        return _by_pillow(image, texts)
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    chunks = [
        _chunk(b"IHDR", header),
        *(_text_chunk(keyword, text) for keyword, text in texts.items()),
        _chunk(b"IDAT", _coded_by_strips(_filtered(pixels))),
        _chunk(b"IEND", b""),
    ]
    return _SIGNATURE + b"".join(chunks)


def _filtered(pixels: _Bytes) -> _Bytes:
    """(H, W, 3) → (H, 1 + 3·W): each row's filter, then its bytes less their prediction."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    above = np.zeros_like(rows)
    above[1:] = rows[:-1]
    left = np.zeros_like(rows)
    left[:, channels:] = rows[:, :-channels]
    # The mean of two bytes, rounded down, without leaving bytes.
    mean = (above & left) + ((above ^ left) >> 1)
    out = np.empty((height, 1 + rows.shape[1]), dtype=np.uint8)
    out[:, 0] = _FILTER_MEAN
    np.subtract(rows, mean, out=out[:, 1:])
    return out


def _coded_by_strips(rows: _Bytes) -> bytes:
    """One zlib stream of parts that are coded side by side: a fixed number of them, so that the
    bytes do not depend on the machine. Runs and Huffman codes hardly ever need what came before."""
    data = rows.reshape(-1).data
    step = max(-(-len(data) // _STRIPS), _STRIP_BYTES)
    strips = [data[start : start + step] for start in range(0, len(data), step)]
    if len(strips) == 1:
        return _coded(rows, zlib.Z_RLE, 1)

    def coded(number: int) -> bytes:
        coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_RLE)
        last = number == len(strips) - 1
        return coder.compress(strips[number]) + coder.flush(
            zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH
        )

    parts = _THREADS.map(coded, range(len(strips)))
    return b"".join([_ZLIB_FASTEST, *parts, struct.pack(">I", zlib.adler32(data))])


def _coded(rows: _Bytes, strategy: int, level: int) -> bytes:
    coder = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return coder.compress(np.ascontiguousarray(rows).data) + coder.flush()


def _repeats(pixels: _Bytes) -> bool:
    """Whether bands of rows from all over the picture repeat themselves a lot."""
    height = pixels.shape[0]
    starts = np.linspace(0, max(0, height - _SAMPLE_ROWS), _SAMPLE_BANDS).astype(int)
    bands = np.concatenate([_filtered(pixels[s : s + _SAMPLE_ROWS])[1:] for s in starts])
    runs = len(_coded(bands, zlib.Z_RLE, 1))
    return len(_coded(bands, zlib.Z_DEFAULT_STRATEGY, 6)) < _WORTH_SEARCHING * runs


def _by_pillow(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    info = PngInfo()
    for keyword, text in texts.items():
        if _is_latin(text):
            info.add_text(keyword, text)
        else:
            info.add_itxt(keyword, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _text_chunk(keyword: str, text: str) -> bytes:
    """tEXt, or iTXt where Latin-1 does not suffice: tEXt would lose other scripts."""
    name = keyword.encode("latin-1")
    if _is_latin(text):
        return _chunk(b"tEXt", name + b"\0" + text.encode("latin-1"))
    # Not compressed; no language; the keyword is not translated.
    return _chunk(b"iTXt", name + b"\0\0\0\0\0" + text.encode())


def _is_latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
