"""The copy of the UNet's weights in 8 bit: follows what LoRAs do to the weights, and comes back.

Duty: requantise what was written, always from the merged weight and into the same memory, so that
recordings see it; keep the copy of W0, put it back and prove it, bit for bit.
Must not know: LoRAs, requests. One caller at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
import torch
from torch import Tensor

from sdxl_worker.bits import fingerprints, first_difference
from sdxl_worker.fp8.unet import Fp8Linear
from sdxl_worker.lora.arena import Arena
from sdxl_worker.lora.grouped import Recorder, Recording

log = structlog.get_logger()


class Fp8Weights:
    """A `lora.reports.Follower` of the weights that these layers stand for.

    Args:
        layers: by the full name of the weight, such as `unet.down_blocks.1.….to_q.weight`, as they
            were made of W0. Their parameters are moved into one block.
        weights: by the same names, where they lie for good.
        recorder: records the requantising of all layers at once.
    """

    def __init__(
        self,
        layers: Mapping[str, Fp8Linear],
        weights: Mapping[str, Tensor],
        recorder: Recorder | None = None,
    ) -> None:
        self._layers = dict(layers)
        self._weights = {name: weights[name] for name in self._layers}
        self._arena = Arena(
            (f"{name}.{kind}", parameter)
            for name, layer in self._layers.items()
            for kind, parameter in (("weight8", layer.weight8), ("scale", layer.scale))
        )
        self._places = {name: _places(layer) for name, layer in self._layers.items()}
        self._fingerprints = self._prints()
        self._dirty = False
        self._recording: Recording | None = None
        if recorder is not None:
            self._record(recorder)

    @property
    def nbytes(self) -> int:
        """Memory of both copies."""
        return 2 * self._arena.nbytes

    def written(self, names: Sequence[str]) -> None:
        """Requantise the layers whose weights, by full name, have other values now."""
        mine = [name for name in names if name in self._layers]
        if not mine:
            return
        self._dirty = True
        if self._recording is not None and 2 * len(mine) >= len(self._layers):
            # Those that were not written give what they have.
            self._recording.replay()
            return
        self._requantise(mine)

    def restore(self) -> str | None:
        """Put the copy of W0 back and compare every bit; what differs all the same, or None."""
        if not self._dirty:
            return self._moved()
        if not self._arena.restore():
            return (
                f"{self._first_difference()} still differs from its pristine copy after a restore"
            )
        self._dirty = False
        return self._moved()

    def difference(self) -> str | None:
        """What is not as at start, or None: where the copies lie, their bytes, and W0's copy's."""
        if (moved := self._moved()) is not None:
            return moved
        if not self._dirty and (different := self._first_difference()) is not None:
            return f"{different} was changed by something other than a LoRA"
        for name, found in self._prints().items():
            if found != self._fingerprints[name]:
                return f"the pristine copy of {name} was changed"
        return None

    def _prints(self) -> dict[str, bytes]:
        pristine = self._arena.pristine
        return dict(zip(pristine, fingerprints(map(_bytes, pristine.values())), strict=True))

    def drop_recording(self) -> None:
        """Give up what only makes this faster: when memory is short."""
        if self._recording is not None:
            self._recording.discard()
            self._recording = None

    def _requantise(self, names: Sequence[str]) -> None:
        for name in names:
            self._layers[name].requantise(self._weights[name])

    def _record(self, recorder: Recorder) -> None:
        everything = list(self._layers)
        try:
            self._recording = recorder.record(lambda: self._requantise(everything), "swaps")
            self._recording.replay()
            right = self._arena.is_pristine()
        except Exception as error:
            log.warning("fp8_swap_not_recorded", error=repr(error)[:300])
            right = False
        if not right:
            self.drop_recording()
            self._arena.restore()

    def _moved(self) -> str | None:
        for name, layer in self._layers.items():
            if _places(layer) != self._places[name]:
                return f"the 8-bit copy of {name} was moved or replaced"
        return None

    def _first_difference(self) -> str | None:
        live = {
            f"{name}.{kind}": parameter
            for name, layer in self._layers.items()
            for kind, parameter in (("weight8", layer.weight8), ("scale", layer.scale))
        }
        return first_difference(
            (f"the 8-bit copy {name}", _bytes(tensor.detach()), _bytes(self._arena.pristine[name]))
            for name, tensor in live.items()
        )


def _bytes(tensor: Tensor) -> Tensor:
    """As integers, which every operation knows."""
    return tensor.view(torch.uint8)


def _places(layer: Fp8Linear) -> tuple[int, int]:
    return layer.weight8.data_ptr(), layer.scale.data_ptr()
