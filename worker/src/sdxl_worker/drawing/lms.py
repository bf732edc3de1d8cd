"""The LMS sampler without SciPy, which diffusers' own needs for a handful of integrals.

Duty: the linear multistep method of order 4 (Adams–Bashforth) on a schedule of noise levels.
Must not know: requests, names of samplers.

From one noise level σᵢ to the next, x grows by ∫ d(σ) dσ, where d is the polynomial through the
last four slopes; its integral is a weighted sum of those slopes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from numpy.polynomial import Polynomial
from torch import Tensor

_ORDER = 4


def multistep_weights(levels: Sequence[float], target: float) -> list[float]:
    """Weights of the slopes at `levels` (the present one first) for the step to `target`."""
    start = levels[0]
    # In units of the step, so that no power of a large noise level is taken.
    step = target - start
    nodes = [(level - start) / step for level in levels]
    weights = []
    for index, node in enumerate(nodes):
        basis = Polynomial([1.0])
        for other in (*nodes[:index], *nodes[index + 1 :]):
            basis = basis * Polynomial([-other, 1.0]) / (node - other)
        weights.append(float(np.diff(basis.integ()(np.array([0.0, 1.0])))[0]) * step)
    return weights


class LmsScheduler(EulerDiscreteScheduler):  # type: ignore[misc]
    """Euler's schedule and prediction types with steps of order 4. One picture at a time."""

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As Euler's; forgets the slopes of the picture before."""
        super().set_timesteps(*args, **options)
        self._slopes: deque[Tensor] = deque(maxlen=_ORDER)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        *,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """The latents at the next noise level, shaped like `sample`."""
        _, clean = super().step(
            model_output, timestep, sample, generator=generator, return_dict=False
        )
        place = int(self.step_index) - 1
        levels = [float(level) for level in self.sigmas]
        self._slopes.appendleft((sample.float() - clean.float()) / levels[place])
        past = [levels[place - back] for back in range(len(self._slopes))]
        moved = sample.float()
        for weight, slope in zip(
            multistep_weights(past, levels[place + 1]), self._slopes, strict=True
        ):
            moved = torch.add(moved, slope, alpha=weight)
        after = moved.to(model_output.dtype)
        if not return_dict:
            return after, clean
        return EulerDiscreteSchedulerOutput(prev_sample=after, pred_original_sample=clean)
