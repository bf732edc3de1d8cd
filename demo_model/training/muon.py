"""Muon for the hidden layers, AdamW for the rest, as one optimizer.

Muon (K. Jordan, 2024, https://kellerjordan.github.io/posts/muon/): the momentum of each weight
matrix is replaced by the nearest (semi-)orthogonal matrix, found by five steps of a quintic
Newton-Schulz iteration. Convolutions count as matrices (out, in x height x width). torch's own
Muon takes two-dimensional parameters only; this one takes all, and batches equal shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the quintic's coefficients, from the source above
_ADAM_RMS = 0.2  # the usual root mean square of an AdamW update (Liu et al. 2025, arXiv 2502.16982)


def orthogonalised(matrices: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly. float (K, M, N) to float32 (K, M, N)."""
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: torch.Tensor = (x.mT if tall else x).float()
    return result


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on `hidden`, AdamW on `others`, one learning rate for both (see `_ADAM_RMS`).

    `dtype` is what Muon's iteration computes in: processors without bfloat16 are slow at it.
    """

    def __init__(
        self,
        hidden: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        hidden, others = list(hidden), list(others)
        super().__init__([{"params": hidden + others}], {"lr": lr})
        self._momentum, self._dtype = momentum, dtype
        # AdamW does not take an empty list, and LoRA factors are all matrices.
        self._adamw = (
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
            if others
            else None
        )
        self._by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in hidden:
            self._by_shape[parameter.flatten(1).shape].append(parameter)

    def set_rate(self, rate: float) -> None:
        """The learning rate of both from the next step on."""
        inner = self._adamw.param_groups if self._adamw else []
        for group in (*self.param_groups, *inner):
            group["lr"] = rate

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters from their gradients."""
        if self._adamw:
            self._adamw.step()
        rate = self.param_groups[0]["lr"]
        for shape, parameters in self._by_shape.items():
            updates, used = [], []
            for parameter in parameters:
                gradient = parameter.grad
                if gradient is None:
                    continue
                memory = self.state[parameter].setdefault("m", torch.zeros_like(gradient))
                memory.lerp_(gradient, 1 - self._momentum)
                updates.append(gradient.lerp(memory, self._momentum).flatten(1))
                used.append(parameter)
            if not used:
                continue
            scale = _ADAM_RMS * max(shape) ** 0.5
            found = orthogonalised(torch.stack(updates), self._dtype)
            for parameter, update in zip(used, found, strict=True):
                parameter.sub_(update.view_as(parameter), alpha=rate * scale)


def split(
    modules: Iterable[torch.nn.Module],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The weights of linear and convolution layers, and all others (embeddings, norms, biases)."""
    modules = list(modules)
    layers = [layer for module in modules for layer in module.modules()]
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    weights = [layer.weight for layer in layers if isinstance(layer, kinds)]
    hidden = [weight for weight in weights if isinstance(weight, torch.nn.Parameter)]
    known = {id(parameter) for parameter in hidden}
    others = [p for module in modules for p in module.parameters() if id(p) not in known]
    return hidden, others
