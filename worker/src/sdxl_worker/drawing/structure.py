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
        # Most of all containers are a module's hooks: looked at in one go.
        self._empty = [one for known in self._modules for one in known.empty]
        self._twin: list[_Module] = []
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
        if (
            not any(self._empty)
            and all(known.is_same for known in self._modules)
            and all(known.is_same and not any(known.empty) for known in self._twin)
        ):
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
        empty: the containers that hold nothing.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name = name
        self._module, self._kind = module, type(module)
        self._held = vars(module)
        # Kept alive, so that no other object can get their place in memory.
        self._known = dict(self._held)
        self._ids = tuple(map(id, self._held.values()))
        containers = {k: v for k, v in self._held.items() if isinstance(v, dict | list | set)}
        self.empty = [container for container in containers.values() if not container]
        self._names = list(containers.items())
        self._full = [
            (one, _contents(one), list(_values(one))) for one in containers.values() if one
        ]
        self._parameters = [p for p in module._parameters.values() if p is not None]
        self._dtypes = [parameter.dtype for parameter in self._parameters]

    @property
    def is_same(self) -> bool:
        """Whether nothing differs; `difference` without a name, quickly."""
        return (
            type(self._module) is self._kind
            and tuple(map(id, self._held.values())) == self._ids
            and all(_contents(one) == contents for one, contents, _ in self._full)
            and [parameter.dtype for parameter in self._parameters] == self._dtypes
        )

    def difference(self) -> str | None:
        """What differs by name, or None."""
        if type(self._module) is not self._kind:
            return f"the class of {self._name}"
        for key in self._held.keys() | self._known.keys():
            if not _same(self._held.get(key, _same), self._known.get(key, _same)):
                return f"{self._name}.{key}"
        full = {id(one): contents for one, contents, _ in self._full}
        for key, one in self._names:
            if _contents(one) != full.get(id(one), ()):
                return f"{self._name}.{key}"
        if [parameter.dtype for parameter in self._parameters] != self._dtypes:
            return f"the precision of {self._name}"
        return None


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
