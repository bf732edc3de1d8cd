"""Static calls: recorded once for each shape of their arguments, replayed ever after.

Duty: which calls are recorded, replayed or made eagerly, and why; which recordings are held, under
a budget of bytes; that a recording gives the eager call's own bits.
Must not know: CUDA (a `Recorder` does), what is called, requests.

Weights are no arguments. A recording reads them where they lie, so whoever changes them must write
into the same memory, as the LoRA patcher does: then one recording serves every LoRA.

Two pools of memory. What is recorded while warming up is kept: requests of the usual shape find it.
All other recordings are guests. Those of one pool share its memory, since only one is ever
replayed at a time and its output is copied out at once; so a guest costs no more than what it needs
beyond the largest one before. The price: memory comes back only when a pool is given up as a whole.
So when the guests pass their budget, all of them go, and the one that is wanted is recorded anew.

A network that comes and goes, such as a control network, is part of what its recordings are known
by, and they hold it: its memory is nobody else's while they are there. Whoever lets it go says so.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import structlog
import torch
from torch import Tensor

from sdxl_worker.graphs.tree import NotStatic, mapped, shape_key, tensors_of
from sdxl_worker.out_of_memory import is_out_of_memory, let_go

log = structlog.get_logger()
# A recording costs a hundred milliseconds and tens of megabytes outside of its pool.
_GUESTS_MAX = 24
# Calls of a shape for which memory was short that are made eagerly before it is tried again.
_PATIENCE = 500


class How(StrEnum):
    """How a call was made."""

    REPLAYED = "replayed"
    RECORDED = "captured"
    EAGER = "eager"


class Why(StrEnum):
    """Why a call was made eagerly."""

    NO_GPU = "no_gpu"
    TURNED_OFF = "turned_off"
    ATTACHED = "attached"
    ARGUMENTS = "arguments"
    MEMORY = "memory"
    BUDGET = "budget"
    FAILED = "capture_failed"
    DIFFERS = "differs"


class Recording(Protocol):
    """One recorded call.

    Attributes:
        nbytes: memory that it added to its pool.
    """

    nbytes: int

    def replay(self) -> Any:
        """Make the call on what its buffers hold; the output stays valid until the next replay."""

    def discard(self) -> None:
        """Let go of the output and the graph."""


class Recorder(Protocol):
    """Records calls on one device, in named pools of memory."""

    def record(self, call: Callable[[], Any], pool: str) -> Recording:
        """`call` recorded; it is run several times for that."""

    def start_anew(self, pool: str) -> None:
        """Give up a pool none of whose recordings are left."""


@dataclass
class _Held:
    buffers: list[Tensor]
    recording: Recording
    kept: bool
    of: Sequence[object]


@dataclass
class _Refusal:
    why: Why
    calls: int = 0


Count = tuple[str, How, Why | None]


@dataclass(frozen=True)
class _Key:
    """What one recording serves."""

    name: str
    of: tuple[int, ...]
    shape: Hashable


class StaticCalls:
    """Makes calls by their recordings where that can be; see the module's text. One thread.

    Args:
        recorder: None records nothing, for the reason `without`.
        budget_bytes: of the guests; those recorded while `warming` are not counted.
        more_to_drop: gives up what others keep on the device only to be faster.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        budget_bytes: int = 0,
        *,
        without: Why = Why.NO_GPU,
        guests_max: int = _GUESTS_MAX,
        more_to_drop: Callable[[], None] = lambda: None,
    ) -> None:
        self._more_to_drop = more_to_drop
        self._recorder = recorder
        self._budget = budget_bytes
        self._without = without
        self._guests_max = guests_max
        self._held: OrderedDict[_Key, _Held] = OrderedDict()
        # Kept beside them: whoever scrapes metrics asks from another thread, and to walk through
        # them while they change their order fails.
        self._nbytes = 0
        # Recorded while warming, and so kept again if they were given up.
        self._usual: set[_Key] = set()
        self._refused: dict[_Key, _Refusal] = {}
        self._counts: Counter[Count] = Counter()
        self.warming = False

    def call(
        self,
        name: str,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        *,
        of: Sequence[object] = (),
        bypass: Why | None = None,
    ) -> Any:
        """What `function(**arguments)` gives, the very bits.

        Args:
            name: of the function, which must be the same at every call with that name.
            of: networks that it reads besides the model; each has recordings of its own.
            bypass: why this call cannot be a recording, such as that something is attached to the
                function's model that no argument shows.
        """
        if bypass is not None or self._recorder is None:
            return self._eager(name, function, arguments, bypass or self._without)
        try:
            key = _Key(name, tuple(map(id, of)), shape_key(arguments))
        except NotStatic:
            return self._eager(name, function, arguments, Why.ARGUMENTS)
        if key in self._held:
            return self._replay(key, function, arguments)
        if (why := self._refusal(key)) is not None:
            return self._eager(name, function, arguments, why)
        # The caller's answer does not depend on whether the recording comes about.
        found = self.run(function, arguments)
        why = self._record(key, of, self._recorder, function, arguments, found)
        self._counts[name, How.EAGER if why else How.RECORDED, why] += 1
        return found

    def drop_all(self) -> None:
        """Give up every recording, such as when memory is short."""
        for held in self._held.values():
            held.recording.discard()
        self._held.clear()
        self._nbytes = 0
        self._more_to_drop()
        if self._recorder is not None:
            for pool in ("kept", "guests"):
                self._recorder.start_anew(pool)

    def forget(self, network: object) -> None:
        """Give up what was recorded of a network that is let go, and what is known of it: another
        one may take its place in memory.
        """
        known = [key for key in (*self._held, *self._refused) if id(network) in key.of]
        for key in known:
            if key in self._held:
                self._drop(key)
            self._refused.pop(key, None)

    def take_counts(self) -> Counter[Count]:
        """(name, how, why) → calls since this was last asked."""
        counts, self._counts = self._counts, Counter()
        return counts

    @property
    def nbytes(self) -> int:
        """Memory of all recordings, kept ones and guests."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._held)

    def _eager(
        self, name: str, function: Callable[..., Any], arguments: dict[str, Any], why: Why
    ) -> Any:
        self._counts[name, How.EAGER, why] += 1
        return self.run(function, arguments)

    def run(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """The eager call, counted nowhere; where memory is short, once more without recordings."""
        try:
            return function(**mapped(arguments, _itself))
        except (RuntimeError, MemoryError) as error:
            if not (self._held and is_out_of_memory(error)):
                raise
            let_go(error)
        self.drop_all()
        return function(**mapped(arguments, _itself))

    def _replay(
        self,
        key: _Key,
        function: Callable[..., Any],
        arguments: dict[str, Any],
    ) -> Any:
        held = self._held[key]
        self._held.move_to_end(key)
        try:
            for buffer, value in zip(held.buffers, tensors_of(arguments), strict=True):
                buffer.copy_(value)
            # Copied out: the next replay in this pool writes over it.
            found = mapped(held.recording.replay(), Tensor.clone)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            let_go(error)
            self.drop_all()
            self._refused[key] = _Refusal(Why.MEMORY)
            return self._eager(key.name, function, arguments, Why.MEMORY)
        self._counts[key.name, How.REPLAYED, None] += 1
        return found

    def _refusal(self, key: _Key) -> Why | None:
        refusal = self._refused.get(key)
        if refusal is None:
            return None
        refusal.calls += 1
        if refusal.why is Why.MEMORY and refusal.calls > _PATIENCE:
            del self._refused[key]
            return None
        return refusal.why

    def _record(
        self,
        key: _Key,
        of: Sequence[object],
        recorder: Recorder,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        expected: Any,
    ) -> Why | None:
        """Record the call and hold it; why not, if that cannot be."""
        if self.warming:
            self._usual.add(key)
        kept = key in self._usual
        if not kept and self._budget == 0:
            return Why.BUDGET
        if not kept and self._guests() >= self._guests_max:
            self._drop(next(key for key, held in self._held.items() if not held.kept))
        why = self._try(key, of, recorder, function, arguments, expected)
        if why is None and not kept and self._guest_bytes() > self._budget:
            self._drop_guests(recorder)
            # Alone, it is charged for the whole of its pool.
            why = self._try(key, of, recorder, function, arguments, expected)
            if why is None and self._guest_bytes() > self._budget:
                self._drop_guests(recorder)
                why = Why.BUDGET
        if why is not None:
            self._refused[key] = _Refusal(why)
        return why

    def _try(
        self,
        key: _Key,
        of: Sequence[object],
        recorder: Recorder,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        expected: Any,
    ) -> Why | None:
        kept, recording = key in self._usual, None
        try:
            fixed = mapped(arguments, _copied)
            recording = recorder.record(
                lambda: function(**mapped(fixed, _itself)), "kept" if kept else "guests"
            )
            # The promise itself, looked at where it is cheap: once for each shape.
            same = _same(recording.replay(), expected)
        except Exception as error:
            # Whatever it is: the same call was just made eagerly, and went well.
            short = is_out_of_memory(error)
            log.warning("call_not_recorded", call=str(key)[:200], error=repr(error)[:500])
            if recording is not None:
                recording.discard()
            let_go(error)
            if short:
                self.drop_all()
            return Why.MEMORY if short else Why.FAILED
        if not same:
            recording.discard()
            return Why.DIFFERS
        self._held[key] = _Held(tensors_of(fixed), recording, kept, of)
        self._nbytes += recording.nbytes
        return None

    def _guests(self) -> int:
        return sum(not held.kept for held in self._held.values())

    def _guest_bytes(self) -> int:
        return sum(held.recording.nbytes for held in self._held.values() if not held.kept)

    def _drop(self, key: _Key) -> None:
        dropped = self._held.pop(key).recording
        self._nbytes -= dropped.nbytes
        dropped.discard()

    def _drop_guests(self, recorder: Recorder) -> None:
        for key in [key for key, held in self._held.items() if not held.kept]:
            self._drop(key)
        recorder.start_anew("guests")


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _copied(tensor: Tensor) -> Tensor:
    """A buffer with the same strides: kernels are chosen by them."""
    buffer = torch.empty_strided(
        tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return buffer.copy_(tensor)


def _same(found: Any, expected: Any) -> bool:
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return all(torch.equal(_bits(one), _bits(other)) for one, other in pairs)


def _bits(tensor: Tensor) -> Tensor:
    # Not as numbers: a LoRA that makes NaNs would look like a recording that is wrong.
    return tensor.contiguous().view(-1).view(torch.uint8)
