"""A signed picture's bytes without its manifest: for a PNG these are the bytes that were signed.

Sources: PNG (third edition) for chunks; C2PA specification 2.x, annex A.3, for where a manifest
lies: a PNG's `caBX` chunk, a RIFF file's `C2PA` chunk.
"""

from __future__ import annotations

import struct

_PNG = b"\x89PNG\r\n\x1a\n"


def without_manifest(picture: bytes) -> bytes | None:
    """`picture` without its manifest; None where the format does not allow to tell them apart."""
    if picture.startswith(_PNG):
        return _png(picture)
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return _webp(picture)
    return None


def _png(picture: bytes) -> bytes | None:
    kept = [picture[:8]]
    place = 8
    while place < len(picture):
        if place + 12 > len(picture):
            return None
        (size,) = struct.unpack_from(">I", picture, place)
        end = place + 12 + size
        if picture[place + 4 : place + 8] != b"caBX":
            kept.append(picture[place:end])
        place = end
    return b"".join(kept)


def _webp(picture: bytes) -> bytes | None:
    chunks = []
    place = 12
    while place + 8 <= len(picture):
        (size,) = struct.unpack_from("<I", picture, place + 4)
        end = place + 8 + size + size % 2
        if picture[place : place + 4] != b"C2PA":
            chunks.append(picture[place:end])
        place = end
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body
