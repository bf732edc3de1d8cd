"""GroupNorm and GEGLU by kernels of our own, where these give torch's own bits.

Duty: a pipeline's layers that call them; for each shape the first result is compared with torch's,
bit for bit, and a kernel that once differed is used never again.
Must not know: CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import structlog
import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn
from torch.nn import functional

from sdxl_worker.kernels.cuda import CudaKernels, Kernels
from sdxl_worker.out_of_memory import is_out_of_memory, let_go

log = structlog.get_logger()
# Shapes that are remembered as right; a shape that was forgotten is compared again.
_KNOWN_MAX = 2000
# Numbers of each group: all of the VAE's, few of the UNet's. Outside of a recording our three
# launches from Python take longer than torch's one takes for fewer (measured on an H200).
_EAGERLY_FROM = 1 << 18


class Quick:
    """What the layers below call. One thread.

    Args:
        kernels: what computes.
        capturing: whether a recording is under way, in which nothing can be compared.
    """

    def __init__(
        self,
        kernels: Kernels,
        capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing,
    ) -> None:
        self._kernels = kernels
        self._capturing = capturing
        self._right: set[Hashable] = set()
        self.off: dict[str, str] = {}

    @torch.no_grad()
    def try_out(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compare on numbers of very different sizes, where other roundings than torch's show."""
        generator = torch.Generator().manual_seed(0)
        layer = nn.GroupNorm(8, 64, eps=1e-5).to(device, dtype)
        for number, size in enumerate((1e-4, 1e-2, 1.0, 1e2)):
            # Each a shape of its own, so that each is compared.
            shape = (2, 64, 8 * (number + 1), 24)
            x = torch.randn(shape, generator=generator) * size + size
            self.group_norm(layer, x.to(device, dtype), layer.forward)
            gates = torch.randn(64 * (number + 1), 128, generator=generator) * size
            self.geglu(gates.to(device, dtype), gated)

    def __deepcopy__(self, _: Any) -> Quick:
        # A twin of the UNet calls the same.
        return self

    def group_norm(
        self, layer: nn.GroupNorm, x: Tensor, plain: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`plain(x)`, which is the layer's own way."""
        if not layer.affine:
            return plain(x)
        return self._call(
            "group_norm",
            (layer.num_groups, layer.eps),
            x,
            lambda: self._kernels.group_norm(
                x, layer.num_groups, layer.weight, layer.bias, layer.eps
            ),
            plain,
            eagerly=x.numel() >= _EAGERLY_FROM * layer.num_groups * x.shape[0],
        )

    def geglu(self, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
        """`plain(x)`, which is torch's own way."""
        return self._call("geglu", (), x, lambda: self._kernels.geglu(x), plain)

    def _call(
        self,
        name: str,
        about: Hashable,
        x: Tensor,
        own: Callable[[], Tensor | None],
        plain: Callable[[Tensor], Tensor],
        *,
        eagerly: bool = True,
    ) -> Tensor:
        if name in self.off:
            return plain(x)
        key = (name, about, tuple(x.shape), x.dtype)
        if key in self._right:
            if not eagerly and not self._capturing():
                return plain(x)
            # None where it lies in another way than the one that was compared.
            found = own()
            return plain(x) if found is None else found
        expected = plain(x)
        if not self._capturing():
            self._compare(name, key, own, expected)
        return expected

    def _compare(
        self, name: str, key: Hashable, own: Callable[[], Tensor | None], expected: Tensor
    ) -> None:
        try:
            found = own()
            if found is None:
                return
            same = torch.equal(_bits(found), _bits(expected))
            why = "its bits differ"
        except Exception as error:
            if is_out_of_memory(error):
                # The comparison's own: it says nothing of the kernel, and is made the next time.
                let_go(error)
                return
            # Whatever else it is: torch's own way is there.
            same, why = False, repr(error)[:300]
        if not same:
            self.off[name] = why
            log.warning("kernel_not_used", kernel=name, because=why)
            return
        if len(self._right) >= _KNOWN_MAX:
            self._right.clear()
        self._right.add(key)


class QuickGroupNorm(nn.GroupNorm):
    """A GroupNorm with `quick`."""

    quick: Quick

    def forward(self, input: Tensor) -> Tensor:
        """As the class above."""
        if torch.compiler.is_compiling():
            return super().forward(input)
        return self.quick.group_norm(self, input, super().forward)


class QuickGEGLU(GEGLU):  # type: ignore[misc]
    """diffusers' GEGLU with `quick`."""

    quick: Quick

    def forward(self, hidden_states: Tensor, *args: Any, **arguments: Any) -> Tensor:
        """As the class above."""
        if args or arguments or torch.compiler.is_compiling():
            plain: Tensor = super().forward(hidden_states, *args, **arguments)
            return plain
        return self.quick.geglu(self.proj(hidden_states), gated)


def gated(projected: Tensor) -> Tensor:
    """What diffusers' GEGLU makes of (…, 2·D): (…, D)."""
    hidden, gate = projected.chunk(2, dim=-1)
    return hidden * functional.gelu(gate)


_QUICK = {nn.GroupNorm: QuickGroupNorm, GEGLU: QuickGEGLU}


def quicken(modules: Iterable[nn.Module], quick: Quick) -> int:
    """Give every GroupNorm and GEGLU in `modules` that is just that its quick class; how many.

    Before anything is proven about the modules: their classes are others then.
    """
    count = 0
    for root in modules:
        for module in root.modules():
            if (cls := _QUICK.get(type(module))) is not None:
                module.__class__ = cls
                module.quick = quick  # type: ignore[assignment]
                count += 1
    return count


def _bits(tensor: Tensor) -> Tensor:
    """As integers: what is no number is equal to itself, too."""
    return tensor.contiguous().view(torch.uint8)


def quicken_on(
    device: torch.device, dtype: torch.dtype, modules: Iterable[nn.Module]
) -> Quick | None:
    """`quicken` where a GPU can; None where nothing is changed, which the log tells."""
    if device.type != "cuda" or dtype is not torch.bfloat16:
        return None
    try:
        quick = Quick(CudaKernels(device))
        quick.try_out(device, dtype)
    except Exception as error:
        # A name of torch's that is gone, a library that is not there: all works without.
        log.warning("no_kernels", error=repr(error)[:300])
        return None
    if len(quick.off) < len(_QUICK):
        log.info("layers_quickened", layers=quicken(modules, quick), off=quick.off)
    return quick
