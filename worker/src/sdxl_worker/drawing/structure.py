"""Whether a pipeline is still built as it was at start: everything about it but its weights' bytes.

Duty: find what a feature left behind that no weight shows: an attention processor, a hook, an
attribute such as FreeU's, a projection, another scheduler, the VAE's tiling or precision, words
added to a tokenizer. The patcher proves the weights of what LoRAs touch; the checksums of what they
never touch, such as the VAE, are here.
Must not know: which features exist. Every attribute of every module is compared, so that one which
is invented tomorrow is found as well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, eq, is_
from typing import Any

import torch
from torch import Tensor, nn

from sdxl_worker.bits import fingerprints
from sdxl_worker.lora import ModelCorrupted

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_TWIN = "unet in 8 bit"
_TOKENIZERS = ("tokenizer", "tokenizer_2")
# Of the parts that the patcher does not know.
_SEALED = ("vae",)
_SCALARS = (bool, int, float, str, type(None))
_DTYPE = attrgetter("dtype")


class Structure:
    """One pipeline as it is now; see the module's text. One caller at a time.

    Args:
        pipe: the pipeline in the state in which every request must find and leave it.
        later: compute the checksums in a thread, after this returns.
    """

    def __init__(self, pipe: Any, *, later: bool = False) -> None:
        self._pipe = pipe
        _settle(pipe)
        self._components = dict(pipe.components)
        self._scheduler = dict(pipe.scheduler.config)
        self._modules = [_Module(name, module) for name, module in _modules(pipe)]
        self._together = _Together(self._modules)
        self._twin: list[_Module] = []
        self._twin_together = _Together([])
        self._tokens = {name: len(getattr(pipe, name)) for name in self._tokenizers()}
        self._fingerprints: dict[str, bytes] = {}
        self._taking = threading.Thread(target=self._take_fingerprints, name="structure")
        self._taking.start()
        if not later:
            self._taking.join()

    def watch(self, twin: nn.Module | None) -> None:
        """From here on the structure of a second UNet, too, that draws in the first one's place and
        shares its parts; None lets go of the one there is."""
        made = [] if twin is None else list(twin.named_modules())
        self._twin = [_Module(f"{_TWIN}.{name}" if name else _TWIN, one) for name, one in made]
        self._twin_together = _Together(self._twin)

    def difference(self) -> str | None:
        """What of the pipeline is not as it was, as a word for it; None if all is."""
        for name, component in self._components.items():
            if getattr(self._pipe, name, None) is not component:
                return f"the pipeline's {name}"
        if dict(self._pipe.scheduler.config) != self._scheduler:
            return "the scheduler's settings"
        for name, count in self._tokens.items():
            if len(getattr(self._pipe, name)) != count:
                return f"the words of the {name}"
        if self._together.is_same and self._twin_together.is_same:
            return None
        everything = (*self._modules, *self._twin)
        return next((name for one in everything if (name := one.difference())), None)

    def verify(self) -> None:
        """Compare the structure: a few milliseconds, after each request.

        Raises:
            ModelCorrupted: something was left behind.
        """
        if (changed := self.difference()) is not None:
            raise ModelCorrupted(f"The model is corrupted: {changed} is not what it was at start.")

    def verify_full(self) -> None:
        """`verify`, and every byte of the parts that no LoRA touches.

        Raises:
            ModelCorrupted: anything differs.
        """
        self.verify()
        self._taking.join()
        for name, found in self._prints():
            if found != self._fingerprints.get(name):
                raise ModelCorrupted(f"The model is corrupted: {name} was written.")

    def _tokenizers(self) -> list[str]:
        return [name for name in _TOKENIZERS if getattr(self._pipe, name, None) is not None]

    def _take_fingerprints(self) -> None:
        for name, found in self._prints():
            # As the patcher's: a process that ends does not wait for it.
            if not threading.main_thread().is_alive():
                return
            self._fingerprints[name] = found

    def _prints(self) -> Iterator[tuple[str, bytes]]:
        sealed: dict[str, Tensor] = {
            f"{part}.{name}": tensor
            for part in _SEALED
            for name, tensor in getattr(self._pipe, part).state_dict().items()
        }
        return zip(sealed, fingerprints(sealed.values()), strict=True)


class _Module:
    """One module's attributes: which objects they are and, of containers, what these hold.

    Attributes:
        held: the attributes as they are now.
        containers: those that hold something, or may.
        parameters, dtypes: of its own.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name = name
        self.module, self.kind = module, type(module)
        self.held = vars(module)
        # Kept alive, so that no other object can get their place in memory.
        self._known = dict(self.held)
        self.containers = {k: v for k, v in self.held.items() if isinstance(v, dict | list | set)}
        self._contents = {
            key: (_contents(one), list(_values(one))) for key, one in self.containers.items()
        }
        self.parameters = [p for p in module._parameters.values() if p is not None]
        self.dtypes = [parameter.dtype for parameter in self.parameters]

    def difference(self) -> str | None:
        """What differs by name, or None."""
        if type(self.module) is not self.kind:
            return f"the class of {self._name}"
        for key in self.held.keys() | self._known.keys():
            if not _same(self.held.get(key, _same), self._known.get(key, _same)):
                return f"{self._name}.{key}"
        for key, one in self.containers.items():
            if _contents(one) != self._contents[key][0]:
                return f"{self._name}.{key}"
        if [parameter.dtype for parameter in self.parameters] != self.dtypes:
            return f"the precision of {self._name}"
        return None


class _Together:
    """All of many modules' attributes in a row, compared by loops in C: there are tens of thousands
    of them, looked at after each request."""

    def __init__(self, modules: list[_Module]) -> None:
        self._modules = [one.module for one in modules]
        self._kinds = [one.kind for one in modules]
        self._parameters = [parameter for one in modules for parameter in one.parameters]
        self._dtypes = [dtype for one in modules for dtype in one.dtypes]
        containers = [held for one in modules for held in one.containers.values()]
        # Most: the hooks of modules that have none.
        self._empty = [one for one in containers if not one]
        containers = [one for one in containers if one]
        held: list[dict[Any, Any]] = [one.held for one in modules]
        self._keyed = [one for one in containers if isinstance(one, dict)]
        self._dicts = held + self._keyed
        self._others = [one for one in containers if not isinstance(one, dict)]
        self._sizes = list(map(len, chain(self._dicts, self._others)))
        self._keys = list(chain.from_iterable(self._keyed))
        # Kept alive, as each module's.
        self._values = [*map(dict.values, self._dicts)]
        self._all = list(chain(chain.from_iterable(self._values), *self._others))

    @property
    def is_same(self) -> bool:
        """Whether nothing differs; `_Module.difference` without a name, quickly."""
        return (
            not any(self._empty)
            and all(map(is_, map(type, self._modules), self._kinds))
            and list(map(len, chain(self._dicts, self._others))) == self._sizes
            and all(map(eq, chain.from_iterable(self._keyed), self._keys))
            and all(map(is_, chain(chain.from_iterable(self._values), *self._others), self._all))
            and list(map(_DTYPE, self._parameters)) == self._dtypes
        )


@torch.no_grad()
def _settle(pipe: Any) -> None:
    """Let the text encoders set themselves up, which transformers does at the first call."""
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, name)
        encoder(
            torch.zeros(1, 1, dtype=torch.long, device=encoder.device), output_hidden_states=True
        )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    # A flag that was set and set back is another object of the same value.
    return type(one) is type(other) and isinstance(one, _SCALARS) and bool(one == other)


def _values(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _contents(container: Any) -> tuple[Any, ...]:
    """Which objects a container holds: hooks, parameters, submodules."""
    if isinstance(container, dict):
        return (*container, *map(id, container.values()))
    return tuple(map(id, container))


def _modules(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    for part in _PARTS:
        for name, module in getattr(pipe, part).named_modules():
            yield f"{part}.{name}" if name else part, module
