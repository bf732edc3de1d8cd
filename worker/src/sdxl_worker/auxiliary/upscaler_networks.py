"""The two architectures of upscalers, written out, and how a file's tensors tell which one it is.

Duty: tensors by name → a network, or why they are none. ESRGAN (Wang et al. 2018, arXiv 1809.00219:
residual-in-residual dense blocks) in its first spelling and in Real-ESRGAN's (arXiv 2107.10833),
and Real-ESRGAN's compact one (convolutions one after the other, pixel shuffle at the end).
Must not know: files, pictures, requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

ESRGAN, COMPACT = "esrgan", "compact"
_SLOPE = 0.2
_RESIDUAL = 0.2
# What a file may ask for: several times the largest that are published.
_BLOCKS_MAX, _WIDTH_MAX, _SCALE_MAX = 64, 512, 8

# ESRGAN's first spelling numbers its layers.
_OLD_BLOCK = re.compile(r"model\.1\.sub\.(\d+)\.RDB([123])\.conv([1-5])\.0\.(weight|bias)")


class NotAnUpscaler(ValueError):
    """The tensors are of no architecture that is known here; the message says why."""


class _Dense(nn.Module):
    """Five convolutions, each of which sees what all before it made."""

    def __init__(self, width: int, grow: int) -> None:
        super().__init__()
        for number in range(1, 6):
            out = width if number == 5 else grow
            self.add_module(f"conv{number}", _conv(width + (number - 1) * grow, out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) → the same shape."""
        made = [x]
        for number in range(1, 5):
            conv = self.get_submodule(f"conv{number}")
            made.append(functional.leaky_relu(conv(torch.cat(made, 1)), _SLOPE))
        last: Tensor = self.get_submodule("conv5")(torch.cat(made, 1))
        return last * _RESIDUAL + x


class _Block(nn.Module):
    def __init__(self, width: int, grow: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_Dense(width, grow) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) → the same shape."""
        out: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return out * _RESIDUAL + x


class Esrgan(nn.Module):
    """ESRGAN's generator.

    Args:
        shrink: how much of the sides is folded into channels first; the steps up are as ever.
        ups: doublings.
    """

    def __init__(self, width: int, grow: int, blocks: int, ups: int, shrink: int) -> None:
        super().__init__()
        self.shrink, self.ups = shrink, ups
        self.scale = 2**ups // shrink
        self.conv_first = _conv(3 * shrink**2, width)
        self.body = nn.Sequential(*(_Block(width, grow) for _ in range(blocks)))
        self.conv_body = _conv(width, width)
        for number in range(1, ups + 1):
            self.add_module(f"conv_up{number}", _conv(width, width))
        self.conv_hr, self.conv_last = _conv(width, width), _conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] → (n, 3, scale·h, scale·w); h, w multiples of `shrink`."""
        x = self.conv_first(functional.pixel_unshuffle(x, self.shrink))
        x = x + self.conv_body(self.body(x))
        for number in range(1, self.ups + 1):
            larger = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.leaky_relu(self.get_submodule(f"conv_up{number}")(larger), _SLOPE)
        out: Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(x), _SLOPE))
        return out


class Compact(nn.Module):
    """Real-ESRGAN's compact generator (`SRVGGNetCompact`): what it adds to the nearest pixels."""

    def __init__(self, width: int, convs: int, scale: int) -> None:
        super().__init__()
        self.scale, self.shrink = scale, 1
        layers: list[nn.Module] = [_conv(3, width), nn.PReLU(width)]
        for _ in range(convs):
            layers += [_conv(width, width), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, _conv(width, 3 * scale**2))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] → (n, 3, scale·h, scale·w)."""
        detail = functional.pixel_shuffle(self.body(x), self.scale)
        return detail + functional.interpolate(x, scale_factor=self.scale, mode="nearest")


Upscaler = Esrgan | Compact


def build_upscaler(tensors: Mapping[str, Tensor]) -> tuple[str, Upscaler]:
    """The architecture's name and the network with these weights, in float32.

    Raises:
        NotAnUpscaler: they are not exactly one's.
    """
    named = dict(tensors)
    if "model.0.weight" in named:
        named = _respelt(named)
    if "conv_first.weight" in named:
        name, network = ESRGAN, _esrgan(named)
    elif "body.0.weight" in named and "body.1.weight" in named:
        name, network = COMPACT, _compact(named)
    else:
        raise NotAnUpscaler("its tensors are neither ESRGAN's nor the compact network's")
    try:
        network.load_state_dict(named, assign=True)
    except RuntimeError as error:
        raise NotAnUpscaler(f"its tensors are not all of {name}'s, or others") from error
    return name, network.float().eval().requires_grad_(False)


def _esrgan(named: Mapping[str, Tensor]) -> Upscaler:
    width, channels = _shape(named, "conv_first.weight")[:2]
    shrink = {3: 1, 12: 2, 48: 4}.get(channels)
    blocks = len({name.split(".")[1] for name in named if name.startswith("body.")})
    ups = len({name for name in named if re.fullmatch(r"conv_up\d\.weight", name)})
    grow = _shape(named, "body.0.rdb1.conv1.weight")[0]
    if shrink is None or not 1 <= ups <= 3 or 2**ups < shrink:
        raise NotAnUpscaler("it has another number of channels or doublings than ESRGAN's")
    _check_bounds(max(width, grow), blocks, 2**ups // shrink)
    with torch.device("meta"):
        return Esrgan(width, grow, blocks, ups, shrink)


def _compact(named: Mapping[str, Tensor]) -> Upscaler:
    last = max(int(m[1]) for name in named if (m := re.fullmatch(r"body\.(\d{1,4})\.\w+", name)))
    width = _shape(named, "body.0.weight")[0]
    scale = round((_shape(named, f"body.{last}.weight")[0] / 3) ** 0.5)
    _check_bounds(width, last // 2, scale)
    with torch.device("meta"):
        return Compact(width, last // 2 - 1, scale)


def _check_bounds(width: int, blocks: int, scale: int) -> None:
    if not (width <= _WIDTH_MAX and 1 <= blocks <= _BLOCKS_MAX and 1 <= scale <= _SCALE_MAX):
        raise NotAnUpscaler("it is larger than any upscaler that is known")


def _shape(named: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in named or named[name].ndim != 4:
        raise NotAnUpscaler(f"{name} is missing, or is no convolution's")
    return tuple(named[name].shape)


def _respelt(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ESRGAN's first spelling in Real-ESRGAN's."""
    blocks = {int(m[1]) for name in named if (m := _OLD_BLOCK.fullmatch(name))}
    # After the trunk: doublings at 3, 6, …, then two convolutions.
    tail = sorted(
        {int(m[1]) for name in named if (m := re.fullmatch(r"model\.(\d{1,2})\.weight", name))}
    )[1:]
    layers = {"model.0": "conv_first", f"model.1.sub.{len(blocks)}": "conv_body"}
    names = [f"conv_up{n}" for n in range(1, len(tail) - 1)] + ["conv_hr", "conv_last"]
    layers |= {f"model.{place}": name for place, name in zip(tail, names, strict=False)}
    found = {}
    for name, tensor in named.items():
        block = _OLD_BLOCK.fullmatch(name)
        stem, _, kind = name.rpartition(".")
        if block:
            name = f"body.{block[1]}.rdb{block[2]}.conv{block[3]}.{block[4]}"
        elif stem in layers:
            name = f"{layers[stem]}.{kind}"
        found[name] = tensor
    return found


def _conv(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)
