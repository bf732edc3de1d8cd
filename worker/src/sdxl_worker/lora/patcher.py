"""Applies LoRAs to a live model and gives the model back, bit for bit.

Duty: own the pristine copy W0 of every tensor that a LoRA may change; write merged values in place,
always from W0 and never on top of another LoRA; know at every moment which tensors differ from
W0; put them back and prove it. Subtracting a LoRA again does not give a 16-bit model back, because
every addition has rounded: so nothing here subtracts.
Must not know: requests, files, prompts. One caller at a time (the worker's single lane).

States of a tensor: pristine; applied (its values are W0 + exactly these contributions); dirty
(writing has begun and not ended). It is marked dirty before it is written, so that an exception
anywhere, an interrupt included, leaves a set of tensors that `restore` puts right.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn

import torch
from torch import Tensor

from sdxl_contract.lora.safetensors import load_failed
from sdxl_contract.result import Phase
from sdxl_worker.bits import copy_checked, fingerprints, first_difference
from sdxl_worker.lora.arena import Arena, fits_arena
from sdxl_worker.lora.grouped import GroupedWrites, Recorder
from sdxl_worker.lora.identities import Identities
from sdxl_worker.lora.keys import ModelTargets
from sdxl_worker.lora.merge import Contribution, full_precision, merge_bias, merge_weight
from sdxl_worker.lora.parse import ParsedLora
from sdxl_worker.lora.plan import ContentKey, canonical, content_key, tensor_plan
from sdxl_worker.lora.reports import (
    Follower,
    Keeper,
    ModelCorrupted,
    RestoreReport,
    SwapKind,
    SwapReport,
    nothing,
)
from sdxl_worker.lora.threads import CorePool


class LoraPatcher:
    """Applies sets of LoRAs to one model, in place; see the module's text.

    Args:
        targets: the model, in the state that is to be its base. Must not be moved or replaced
            afterwards: pointers, dtypes and strides are checked and a change is an error.
        pristine_device: where the copy W0 is kept; the weights' own device unless given. On the
            CPU of a machine with a GPU it is pinned.
        fingerprint_later: compute in a thread, after this returns, the checksums that only
            `verify_full` needs; a second or two of a large model's start.
        kept: where pristine copies of some weights exist already; only the others are copied.
        one_block: move the weights into one block of memory, which a GPU restores and compares in a
            few operations; not together with the two above. Left out where it cannot be.
        recorder: records the writing of sets of a kind that comes again, on a GPU.
        operand_bytes: of what is kept for such sets.
    """

    def __init__(
        self,
        targets: ModelTargets,
        *,
        pristine_device: torch.device | str | None = None,
        fingerprint_later: bool = False,
        kept: Keeper | None = None,
        one_block: bool = False,
        recorder: Recorder | None = None,
        operand_bytes: int = 0,
    ) -> None:
        self._targets = targets
        fits = one_block and fits_arena(parameter for _, parameter in targets.patchable())
        # Before anything holds the weights.
        self._arena = Arena(targets.patchable()) if fits else None
        self._live: dict[str, Tensor] = {name: p.detach() for name, p in targets.patchable()}
        self._pristine: dict[str, Tensor] = dict(self._arena.pristine) if self._arena else {}
        self._copied_bytes = self._arena.nbytes if self._arena else 0
        self._kept = None
        for name, tensor in self._live.items():
            if name in self._pristine:
                continue
            twin = kept.twin(tensor) if kept is not None else None
            if twin is None:
                twin = _copied(tensor, pristine_device)
                self._copied_bytes += twin.nbytes
            else:
                self._kept = kept
            self._pristine[name] = twin
        self._names = {tensor.data_ptr(): name for name, tensor in self._live.items()}
        everything = dict(targets.tensors())
        self._identities = Identities(targets)
        self._grouped = GroupedWrites(self._live, self._pristine, operand_bytes, recorder)
        patched = {id(parameter) for _, parameter in targets.patchable()}
        self._others = {name: t for name, t in everything.items() if id(t) not in patched}
        # What no pristine copy is compared with: the other tensors, and the copy itself.
        self._fingerprints: dict[str, bytes] = {}
        self._fingerprinting = threading.Thread(target=self._take_fingerprints, name="fingerprints")
        self._fingerprinting.start()
        if not fingerprint_later:
            self._fingerprinting.join()
        # Tensors that differ, or may differ, from W0 → what they hold.
        self._dirty: dict[str, ContentKey | None] = {}
        self._wanted: ContentKey | None = ()
        self._failed: str | None = None
        self._cores = CorePool()
        self._follower: Follower | None = None

    @property
    def applied_key(self) -> ContentKey | None:
        """(sha256, scale) of each applied LoRA in canonical order; None while that is unknown."""
        return self._wanted

    @property
    def dirty_tensors(self) -> int:
        """How many tensors differ, or may differ, from W0."""
        return len(self._dirty)

    @property
    def pristine_bytes(self) -> int:
        """Memory of the pristine copies that were made here, in bytes."""
        return self._copied_bytes

    def drop_operands(self) -> None:
        """Give up what only makes the writing of known sets faster: when memory is short."""
        self._grouped.drop_all()
        if self._follower is not None:
            self._follower.drop_recording()

    def follow(self, follower: Follower | None) -> None:
        """From here on keep `follower`, made of W0, in step; None lets go of the one there is."""
        self._follower = follower

    def pristine(self, module: str) -> Tensor:
        """W0 of a module's weight by full name; not to be written."""
        return self._pristine[f"{module}.weight"]

    def unwritten(self, tensor: Tensor) -> Tensor:
        """W0 of a parameter that LoRAs may change, not to be written; any other tensor itself."""
        name = self._names.get(tensor.data_ptr())
        return tensor if name is None else self._pristine[name]

    def apply(
        self,
        loras: Sequence[tuple[ParsedLora, float]],
        *,
        check: Callable[[], None] = nothing,
    ) -> SwapReport:
        """Makes the model base + `loras`, whatever LoRAs it holds now.

        Every tensor of the new set is computed from W0 and written once, unless it holds just
        that already; tensors that only the old set touched are put back. The result depends
        neither on the order of `loras` nor on what was applied before. Scale 0 writes nothing.

        Args:
            loras: parsed against the same model, each with its strength.
            check: called before each tensor is written; whatever it raises ends the work.

        Raises:
            LoraLoadFailed: a LoRA was parsed against another model, or a scale is not finite
                (nothing written); or a merged weight overflows (call `restore`).
            ModelCorrupted: a tensor was moved or replaced.
        """
        started = time.perf_counter()
        self._refuse_if_failed()
        active = canonical(loras)
        wanted = content_key(loras)
        before = self._wanted
        if wanted == before:
            kind = SwapKind.SAME if wanted else SwapKind.NONE
            return SwapReport(kind, 0, 0, 0, time.perf_counter() - started)
        self._check_fits(active)
        self._check_identities()
        contents, contributions = tensor_plan(active)
        self._wanted = None
        leaving = [name for name in self._dirty if name not in contents]
        self._put_back(leaving)
        changing = [
            name for name, content in contents.items() if self._dirty.get(name, ()) != content
        ]

        def write(name: str) -> None:
            check()
            # Of the thread that this runs in.
            with torch.no_grad():
                self._write(name, contributions[name])
            self._dirty[name] = contents[name]

        bulk = {
            name: contributions[name]
            for name in changing
            if self._grouped.takes(name, contributions[name])
        }
        with full_precision():
            if bulk:
                check()
                self._dirty.update(dict.fromkeys(bulk))
                with torch.no_grad():
                    self._grouped.write((wanted, tuple(bulk)), bulk)
                self._dirty.update((name, contents[name]) for name in bulk)
            self._each(write, [name for name in changing if name not in bulk])
        if self._follower is not None:
            # After a break, nobody knows what it has seen.
            self._follower.written([*changing, *leaving] if before is not None else [*self._live])
        self._wanted = wanted
        kind = SwapKind.SWITCH if before else SwapKind.FRESH
        seconds = time.perf_counter() - started
        nbytes = _sum_bytes(self._live, changing) + _sum_bytes(self._live, leaving)
        return SwapReport(kind, len(changing), len(leaving), nbytes, seconds)

    def restore(self) -> RestoreReport:
        """Puts every dirty tensor back to W0 and compares it with W0, bit for bit.

        Raises:
            ModelCorrupted: a tensor differs all the same, or was moved or replaced. The patcher
                then refuses all work.
        """
        self._refuse_if_failed()
        names = list(self._dirty)
        started = time.perf_counter()
        if self._arena is not None and names:
            # It writes the block alone, and goes on while the interpreter looks at what moved.
            self._arena.copy_back()
        self._check_identities()
        if self._arena is not None and names and not self._arena.is_pristine():
            self._put_back(list(self._live))  # which names what differs
            self._fail("a weight differed from its pristine copy after a restore")
        if self._arena is None:
            self._put_back(names)
        if self._follower is not None and (different := self._follower.restore()) is not None:
            self._fail(different)
        self._dirty.clear()
        self._wanted = ()
        seconds = time.perf_counter() - started
        return RestoreReport(len(names), _sum_bytes(self._live, names), seconds)

    def verify_full(self) -> None:
        """Checks every parameter and buffer against the state at start; the slow path.

        Tensors that LoRAs may change are compared with W0 bit for bit, and W0 itself and all
        other tensors with their checksums. Tensors that hold a LoRA now are left out.

        Raises:
            ModelCorrupted: anything differs.
        """
        self._check_identities()
        if (changed := self._identities.changed_in_full()) is not None:
            self._fail(f"{changed} was moved or replaced")
        self._fingerprinting.join()
        clean = (name for name in self._live if name not in self._dirty)
        different = first_difference((n, self._live[n], self._pristine[n]) for n in clean)
        if different is not None:
            self._fail(f"{different} was changed by something other than the patcher")
        for name, now in self._prints():
            if now != self._fingerprints.get(name):
                self._fail(f"{name} was changed by something other than the patcher")
        if self._follower is not None and (found := self._follower.difference()) is not None:
            self._fail(found)

    def _take_fingerprints(self) -> None:
        for name, found in self._prints():
            # No daemon thread, which would be torn out of torch's code and abort the process; but
            # a process that ends should not wait for it either.
            if not threading.main_thread().is_alive():
                return
            self._fingerprints[name] = found

    def _prints(self) -> Iterator[tuple[str, bytes]]:
        copies = {f"the pristine copy of {name}": w0 for name, w0 in self._pristine.items()}
        watched = self._others | copies
        return zip(watched, fingerprints(watched.values()), strict=True)

    @contextmanager
    def applied(
        self,
        loras: Sequence[tuple[ParsedLora, float]],
        *,
        check: Callable[[], None] = nothing,
        phase: Callable[[Phase], AbstractContextManager[None]] = lambda _: nullcontext(),
        hand_over: Callable[[], bool] = lambda: False,
        restored: Callable[[RestoreReport], None] = nothing,
    ) -> Iterator[SwapReport]:
        """The model with `loras` for the length of a `with` block; then W0 again, verified.

        Args:
            check: as `apply`'s; also called before anything else, since what an earlier block
                handed over is restored here even if this one must not begin.
            phase: entered around `apply` and around the restore.
            hand_over: asked once, after a block that raised nothing: True leaves the set in place
                for the next block, which writes nothing if it wants the same.
            restored: called with the report of each restore, also where the block raised.

        Raises:
            ModelCorrupted: the model could not be put back, for whatever reason. The patcher then
                refuses all work.
        """
        stays = False
        try:
            with phase(Phase.APPLY):
                check()
                swap = self.apply(loras, check=check)
            yield swap
            stays = hand_over()
        finally:
            if not stays:
                restored(self._surely_restored(phase))

    def _surely_restored(
        self, phase: Callable[[Phase], AbstractContextManager[None]]
    ) -> RestoreReport:
        try:
            with phase(Phase.RESTORE):
                report = self.restore()
        except ModelCorrupted:
            raise
        except Exception as error:
            self._fail(f"the restore failed with {type(error).__name__}", error)
        if self._dirty:
            self._fail(f"{len(self._dirty)} tensors were not put back by a restore")
        return report

    def _each(self, write: Callable[[str], None], names: list[str]) -> None:
        """`write` each tensor: side by side on a CPU, in the stream's order on a GPU."""
        if names and all(self._on_cpu(name) for name in names):
            self._cores.each(write, names)
            return
        for name in names:
            write(name)

    def _write(self, name: str, contributions: list[Contribution]) -> None:
        live = self._live[name]
        base = self._pristine[name].to(live.device, non_blocking=True)
        # Before the write, not after: a half-written tensor must be known as one.
        self._dirty[name] = None
        merge = merge_weight if name.endswith(".weight") else merge_bias
        unsure = merge(live, base, contributions)
        if unsure and not bool(torch.isfinite(live).all()):
            raise load_failed(
                f"With these LoRAs and scales {name} becomes infinite or NaN.",
                "not_finite",
            )

    def _put_back(self, names: list[str]) -> None:
        """Copies W0 over the tensors and compares them with it, bit for bit."""
        self._dirty.update(dict.fromkeys(names))
        different = copy_checked((n, self._live[n], self._pristine[n]) for n in names)
        if different is not None:
            self._fail(f"{different} still differs from its pristine copy after a restore")
        # Only now: until it is proven, a tensor stays in the set that a second try puts back.
        for name in names:
            del self._dirty[name]

    def _check_fits(self, active: list[tuple[ParsedLora, float]]) -> None:
        for lora, _ in active:
            for name, layer in lora.layers.items():
                if self._targets.shapes.get(name) != layer.weight_shape:
                    raise load_failed(
                        f"The LoRA was parsed for another model: {name} does not fit.", "misfit"
                    )

    def _check_identities(self) -> None:
        if self._kept is not None and (changed := self._kept.changed()) is not None:
            self._fail(f"{changed} was written while the model was using it")
        if (moved := self._identities.changed()) is not None:
            self._fail(f"{moved} was moved or replaced")

    def _on_cpu(self, name: str) -> bool:
        return self._live[name].device.type == self._pristine[name].device.type == "cpu"

    def _refuse_if_failed(self) -> None:
        if self._failed is not None:
            raise ModelCorrupted(f"The model is corrupted: {self._failed}.")

    def _fail(self, why: str, cause: BaseException | None = None) -> NoReturn:
        self._failed = why
        self._wanted = None
        raise ModelCorrupted(f"The model is corrupted: {why}.") from cause


def _copied(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """A copy with the same strides, pinned where it is to be copied to a GPU again."""
    target = tensor.device if device is None else torch.device(device)
    pinned = target.type == "cpu" and tensor.device.type == "cuda"
    copy = torch.empty_strided(
        tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=target, pin_memory=pinned
    )
    with torch.no_grad():
        return copy.copy_(tensor)


def _sum_bytes(tensors: dict[str, Tensor], names: Sequence[str]) -> int:
    return sum(tensors[name].nbytes for name in names)
