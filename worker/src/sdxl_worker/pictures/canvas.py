"""What a request draws over: its source as large as the drawing, its mask, and the way back.

Duty: sizes, frames, crops and edges; that what lies outside the mask keeps the source's own bytes.
Must not know: latents, samplers, how pictures are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from sdxl_contract.errors import ImageLoadFailed
from sdxl_contract.limits import UPSCALED_MAX_PIXELS, ModelLimits
from sdxl_contract.pictures import Area, Fill, Fit, Inpaint, Outpaint
from sdxl_contract.request import GenerateRequest
from sdxl_worker.pictures.filling import filled

_LANCZOS = Image.Resampling.LANCZOS
_BILINEAR = Image.Resampling.BILINEAR
# A result has to fit into the memory of whoever keeps it.
_BASE_MAX_PIXELS = 2**24
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """What one request draws over; every picture of it has the same.

    Attributes:
        pixels: RGB, as large as the drawing.
        mask: L, as large: 255 is drawn anew; None: all of it is.
        fill: what stands under the mask in latent space, where `pixels` do not show it already.
        soft: whether greys of the mask say how much may change.
    """

    pixels: Image.Image
    mask: Image.Image | None = None
    fill: Fill = Fill.ORIGINAL
    soft: bool = False
    _base: Image.Image | None = None
    _edge: Image.Image | None = None
    _box: Box | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the drawing, px."""
        return self.pixels.size

    @property
    def nbytes(self) -> int:
        """Memory of its pictures."""
        held = {id(one): one for one in (self.pixels, self.mask, self._base, self._edge) if one}
        return sum(one.width * one.height * len(one.getbands()) for one in held.values())

    def finished(self, drawn: Image.Image) -> Image.Image:
        """The answer's picture: `drawn` through the mask, everything else the source's own."""
        if self._base is None or self._edge is None:
            return drawn
        left, top, right, bottom = self._box or (0, 0, *self._base.size)
        if drawn.size != (right - left, bottom - top):
            drawn = drawn.resize((right - left, bottom - top), _LANCZOS)
        whole = self._base.copy()
        whole.paste(drawn, (left, top), self._edge)
        return whole


def make_canvas(
    request: GenerateRequest, limits: ModelLimits, source: Image.Image, mask: Image.Image | None
) -> Canvas:
    """The canvas of `request`, which names a source.

    Args:
        source: RGB, of any size.
        mask: L, of any size; as large as the source is understood.

    Raises:
        ImageLoadFailed: the mask is empty, or the source too large or too small for what is asked.
    """
    if request.upscale is not None:
        width, height = request.upscale.size(source.size)
        if width * height > UPSCALED_MAX_PIXELS:
            raise ImageLoadFailed(
                f"image is {source.width}x{source.height} px and would become {width}x{height}: "
                f"at most {UPSCALED_MAX_PIXELS} pixels",
                details={"field": "image", "reason": "too_large", "maximum": UPSCALED_MAX_PIXELS},
            )
        return Canvas(source)
    inpaint = request.inpaint or Inpaint()
    fill = inpaint.fill or Fill.ORIGINAL
    if request.outpaint is not None:
        source, mask = _framed(source, request.outpaint)
        fill = inpaint.fill or Fill.SURROUNDINGS
    if mask is not None and mask.size != source.size:
        mask = mask.resize(source.size, _BILINEAR)
    if mask is not None and inpaint.area is Area.MASKED:
        return _enlarged(request, limits, source, mask, inpaint, fill)
    size = _drawing_size(request, limits, source.size)
    fit = request.fit or Fit.CROP
    source = _fitted(source, size, fit)
    if mask is None:
        return Canvas(source)
    mask = _blurred(_fitted(mask, size, fit), inpaint.blur)
    _check_mask(mask)
    edge = _edge(mask, soft=inpaint.soft)
    return Canvas(_under(source, mask, fill), mask, fill, inpaint.soft, source, edge)


def _enlarged(
    request: GenerateRequest,
    limits: ModelLimits,
    source: Image.Image,
    mask: Image.Image,
    inpaint: Inpaint,
    fill: Fill,
) -> Canvas:
    """The canvas of the mask's surroundings alone, which the answer has in the whole source."""
    if source.width * source.height > _BASE_MAX_PIXELS:
        raise ImageLoadFailed(
            f"image is {source.width}x{source.height} px: with inpaint.area masked, which gives "
            f"back all of it, it may have at most {_BASE_MAX_PIXELS} pixels",
            details={"field": "image", "reason": "too_large", "maximum": _BASE_MAX_PIXELS},
        )
    mask = _blurred(mask, inpaint.blur)
    size = request.size(limits)
    box = _surroundings(_check_mask(mask), inpaint.padding, size, source.size)
    part, hole = source.crop(box), mask.crop(box)
    pixels = _under(part, hole, fill).resize(size, _LANCZOS)
    edge = _edge(hole, soft=inpaint.soft)
    return Canvas(pixels, hole.resize(size, _BILINEAR), fill, inpaint.soft, source, edge, box)


def _drawing_size(
    request: GenerateRequest, limits: ModelLimits, size: tuple[int, int]
) -> tuple[int, int]:
    """The request's sides; those left open from the source's own size or proportions."""
    width, height = request.width, request.height
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, limits.nearest_side(round(width * size[1] / size[0]))
    if height is not None:
        return limits.nearest_side(round(height * size[0] / size[1])), height
    smallest, largest = min(size), max(size)
    scale = 1.0
    if smallest < limits.min_side or largest > limits.max_side:
        # As many pixels as the model was trained for.
        scale = limits.native_size / (size[0] * size[1]) ** 0.5
    return limits.nearest_side(round(size[0] * scale)), limits.nearest_side(round(size[1] * scale))


def _fitted(picture: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """`picture` at `size`; its very pixels where it has that already."""
    if picture.size == size:
        return picture
    box: tuple[float, float, float, float] = (0, 0, *picture.size)
    if fit is Fit.CROP:
        scale = min(picture.width / size[0], picture.height / size[1])
        width, height = size[0] * scale, size[1] * scale
        left, top = (picture.width - width) / 2, (picture.height - height) / 2
        right, bottom = left + width, top + height
        box = (left, top, min(right, picture.width), min(bottom, picture.height))
    return picture.resize(size, _LANCZOS, box=box)


def _framed(source: Image.Image, frame: Outpaint) -> tuple[Image.Image, Image.Image]:
    """`source` with empty borders, and the mask of these and of the overlap."""
    size = (
        frame.left + source.width + frame.right,
        frame.top + source.height + frame.bottom,
    )
    whole = Image.new("RGB", size, (128, 128, 128))
    whole.paste(source, (frame.left, frame.top))
    # On each side that is drawn, at most half of the source is drawn over.
    across, down = (min(frame.overlap, side // 2) for side in source.size)
    kept = (
        frame.left + (across if frame.left else 0),
        frame.top + (down if frame.top else 0),
        frame.left + source.width - (across if frame.right else 0) - 1,
        frame.top + source.height - (down if frame.bottom else 0) - 1,
    )
    mask = Image.new("L", size, 255)
    if kept[0] <= kept[2] and kept[1] <= kept[3]:
        ImageDraw.Draw(mask).rectangle(kept, fill=0)
    return whole, mask


def _blurred(mask: Image.Image, radius: int) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask


def _edge(mask: Image.Image, *, soft: bool) -> Image.Image:
    """By which the drawing is laid over the source: a soft mask has done its work before."""
    return mask.point([0, *[255] * 255]) if soft else mask


def _under(source: Image.Image, mask: Image.Image, fill: Fill) -> Image.Image:
    return filled(source, mask) if fill is Fill.SURROUNDINGS else source


def _check_mask(mask: Image.Image) -> Box:
    """Where the mask is; it must be somewhere."""
    box = mask.getbbox()
    if box is None:
        raise ImageLoadFailed(
            "mask is empty: white is what is drawn anew, and there is none",
            details={"field": "mask", "reason": "empty_mask"},
        )
    return box


def _surroundings(box: Box, padding: int, size: tuple[int, int], within: tuple[int, int]) -> Box:
    """`box` with its padding, grown to the proportions of `size` as far as the source goes."""
    left, top = max(box[0] - padding, 0), max(box[1] - padding, 0)
    right, bottom = min(box[2] + padding, within[0]), min(box[3] + padding, within[1])
    width, height = right - left, bottom - top
    if width * size[1] < height * size[0]:
        left, right = _grown(left, right, round(height * size[0] / size[1]), within[0])
    else:
        top, bottom = _grown(top, bottom, round(width * size[1] / size[0]), within[1])
    return left, top, right, bottom


def _grown(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    wanted = min(max(wanted, end - start), limit)
    start = min(max(start - (wanted - (end - start)) // 2, 0), limit - wanted)
    return start, start + wanted
