"""torch, diffusers and transformers, imported without what drawing with SDXL never uses.

Duty: a start's imports in about half the time. Both libraries import more than a hundred other
model families, adapter and training packages, the compiler's front end and the distributed
runtime, most of it because it is installed.
Must not know: settings, models, files.

How, and only while the imports run; afterwards everything is as Python would have it:
- packages that are optional to both libraries are said not to be installed;
- `torch.distributed` is said not to be part of this torch, as in builds without it;
- packages whose `__init__` only collects names are entered without running it (`_Postponed`): it
  runs when somebody asks for one of those names, so that nothing is missing later;
- decorators that only speak to `torch.compile` hand back what they are given;
- the list of all models, which transformers makes twice at import by reading some two thousand
  files, is kept from the first start to the next, in the user's cache folder;
- no garbage is looked for: imports make hardly any, and lasting objects by the hundred thousand.

A process that compiles its UNet, or that loads a model in another way than from a folder of
safetensors files (`sdxl_worker.loading.from_folder`), imports in full: it uses what is left out.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog

log = structlog.get_logger()

_LIBRARIES = ("torch", "diffusers", "transformers")
# Optional to diffusers and transformers, and of no use to a worker: it applies LoRAs itself.
_LEFT_OUT = (
    "accelerate", "peft", "boto3", "bitsandbytes", "cv2", "flax", "gguf", "jax", "librosa",
    "matplotlib", "nltk", "onnxruntime", "optimum", "pandas", "scipy", "sentencepiece", "sklearn",
    "soundfile", "tensorboard", "torchaudio", "torchvision", "wandb",
)  # fmt: skip
# `__init__` files that collect the names of every family of models.
_COLLECTIONS = (
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)
# Entered without its `__init__`, too, for as long as the imports run: most of `torch.compile`.
_COMPILER = "torch._dynamo"
_EXPORTER = "torch.export"
# transformers' package of all models, and its list of them: what they need → module → names.
_MODELS = "models"
_Models = dict[frozenset[str], dict[str, set[str]]]
# Of `torch._dynamo`: decorators that mark a function for a compiler that will not run.
_MARKS = ("allow_in_graph", "assume_constant_result", "disable", "disallow_in_graph")


def import_libraries(*, lean: bool = True) -> bool:
    """Import torch, diffusers and transformers with all that an SDXL pipeline needs of them.

    Args:
        lean: leave out what the module's text says. Nothing is left out where one of the three is
            imported already.

    Returns:
        Whether the imports were lean.
    """
    lean = lean and not any(name in sys.modules for name in _LIBRARIES)
    if lean:
        try:
            with _leanly():
                _import_pipeline()
            return True
        except Exception as error:
            # Other versions of the libraries may need what is left out: slower is not broken.
            log.warning("lean_imports_failed", reason=repr(error))
            _forget("diffusers", "transformers")
    _import_pipeline()
    return False


def _import_pipeline() -> None:
    import diffusers
    import transformers

    # Both import their modules on first use; these are the ones that `folder` builds from.
    _: Any = (
        diffusers.StableDiffusionXLPipeline, diffusers.EulerDiscreteScheduler,
        transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer,
    )  # fmt: skip


@contextmanager
def _leanly() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_without_garbage_collection())
        stack.enter_context(_not_installed(_LEFT_OUT))
        # Only diffusers asks, to find the distribution of the few packages that are named
        # differently; the answer takes reading every distribution's list of files.
        stack.enter_context(_replaced(importlib.metadata, "packages_distributions", dict))
        _postpone(_EXPORTER)
        import torch
        import torch.distributed

        # torch imports some parts of itself when they are asked for; this one becomes another.
        stack.callback(_leave_to_torch, torch, _EXPORTER)
        stack.enter_context(_replaced(torch.distributed, "is_available", lambda: False))
        stack.enter_context(_replaced(torch.compiler, "disable", _unmarked))
        compiler = _postpone(_COMPILER)
        for mark in _MARKS:
            setattr(compiler, mark, _unmarked)
        stack.callback(_forget_if_postponed, _COMPILER)
        for name in _COLLECTIONS:
            _postpone(name)
        stack.enter_context(_with_a_kept_list_of_models())
        yield
        for name in _COLLECTIONS:
            parent, _, child = name.rpartition(".")
            if child not in vars(sys.modules[parent]):
                setattr(sys.modules[parent], child, sys.modules[name])
        _ask_for_compiled_modules_only_where_there_can_be_some()


@contextmanager
def _with_a_kept_list_of_models() -> Iterator[None]:
    """transformers takes its list of models from the last start, if the same version made one."""
    package = _postpone("transformers")
    package.__version__ = importlib.metadata.version("transformers")  # type: ignore[attr-defined]
    tools = importlib.import_module("transformers.utils.import_utils")
    original = tools.define_import_structure
    models = Path(package.__path__[0], _MODELS)
    kept = _list_of_models(package)

    @cache
    def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
        if prefix == _MODELS:
            return _read_models(kept) or _keep_models(kept, original(module_path, prefix))
        if prefix is None and Path(module_path) == models / "__init__.py":
            # The package of models asks for the same list without the name of its folder.
            return {
                needs: {module.removeprefix(f"{_MODELS}."): names for module, names in some.items()}
                for needs, some in define_import_structure(models, _MODELS).items()
            }
        return original(module_path, prefix)

    with _replaced(tools, "define_import_structure", define_import_structure):
        del sys.modules["transformers"]
        yield


def _read_models(path: Path) -> _Models | None:
    with suppress(OSError, ValueError, TypeError):
        return {
            frozenset(needs): {module: set(names) for module, names in modules.items()}
            for needs, modules in json.loads(path.read_text())
        }
    return None


def _keep_models(path: Path, found: _Models) -> _Models:
    with suppress(OSError):
        kept = [
            (sorted(needs), {module: sorted(names) for module, names in modules.items()})
            for needs, modules in found.items()
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        # In one step: another worker may start at this moment.
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(kept))
        part.replace(path)
    return found


def _list_of_models(package: ModuleType) -> Path:
    """Where it is kept; another name for another version, and for one that was installed anew."""
    installed = Path(package.__path__[0]).stat().st_mtime_ns
    version = package.__version__
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "modal-sdxl-lora" / f"transformers-{version}-{installed:x}.json"


def _ask_for_compiled_modules_only_where_there_can_be_some() -> None:
    """diffusers asks of every module that it gets, and imports the compiler to be told."""
    name = "is_compiled_module"
    original = getattr(sys.modules["diffusers.utils.torch_utils"], name)

    def is_compiled_module(module: Any) -> bool:
        return _COMPILER in sys.modules and original(module)

    for holder in [m for n, m in sys.modules.items() if n.startswith("diffusers.")]:
        if vars(holder).get(name) is original:
            setattr(holder, name, is_compiled_module)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # What was imported stays: a collection need never look at it again.
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def _not_installed(names: tuple[str, ...]) -> Iterator[None]:
    """None in the table of modules is Python's own word for a module that is not to be had."""
    hidden = [name for name in names if name not in sys.modules]
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    for name in hidden:
        modules[name] = None
    try:
        yield
    finally:
        for name in hidden:
            if modules.get(name, name) is None:
                del modules[name]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        # Not where the owner has meanwhile been imported in full, with the real thing.
        if vars(owner).get(name) is value:
            delattr(owner, name) if before is missing else setattr(owner, name, before)


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator, called with a function or with options only, that changes nothing."""
    return function if function is not None else lambda marked: marked


class _Postponed(ModuleType):
    """A package whose submodules can be imported, and whose `__init__` has not run yet.

    It runs when an attribute is asked for that is neither there nor a submodule.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        full = f"{self.__name__}.{name}"
        try:
            if find_spec(full) is not None:
                return importlib.import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:
                raise
        # As any other module from now on: no second run, and no attributes by guessing.
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        # An `__init__` may put another object in its own place.
        return getattr(sys.modules[self.__name__], name)


def _postpone(name: str) -> ModuleType:
    """Enters the package `name` into the table of modules without running its `__init__`."""
    top, *rest = name.split(".")
    found = find_spec(top)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"no package {top}")
    folder = os.path.join(found.submodule_search_locations[0], *rest)
    spec = spec_from_file_location(
        name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or not os.path.exists(str(spec.origin)):
        raise ImportError(f"no package {name}")
    module = _Postponed(name)
    vars(module).update(_module_names(spec, folder))
    sys.modules[name] = module
    return module


def _module_names(spec: ModuleSpec, folder: str) -> Mapping[str, object]:
    return {
        "__spec__": spec, "__loader__": spec.loader, "__file__": spec.origin,
        "__path__": [folder], "__package__": spec.name,
    }  # fmt: skip


def _forget_if_postponed(name: str) -> None:
    """Its modules need each other in the order of its `__init__`: whoever asks for it later gets
    all of it."""
    if type(sys.modules.get(name)) is _Postponed:
        del sys.modules[name]


def _leave_to_torch(torch: Any, name: str) -> None:
    if type(sys.modules.get(name)) is _Postponed:
        child = name.rpartition(".")[2]
        torch._lazy_modules.add(child)
        delattr(torch, child)
        del sys.modules[name]


def _forget(*packages: str) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]
