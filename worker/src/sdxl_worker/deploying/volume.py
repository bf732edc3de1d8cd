"""The base model's files on a volume: filled once, hashed, and checked before they are trusted.

Duty: from a hub name, a URL or a path to a folder of a diffusers SDXL pipeline beside a manifest
with the SHA-256 of every file; and the comparison of the two.
Must not know: Modal, or how the model is run.

On the volume `<root>/<name>/…` are the files and `<root>/<name>.manifest.json` is what they must
be. A new model is put together beside the old one and takes its place by a rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdxl_worker.deploying.single_file import WeightsError, convert

WEIGHTS_ROOT_DEFAULT = "/weights"
# Small files of an SDXL pipeline (configurations, tokenizers) that a single file does not hold.
SDXL_CONFIG = "stabilityai/stable-diffusion-xl-base-1.0"

_MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
_FOLDERS = ("scheduler", "tokenizer", "tokenizer_2", *_MODELS)
_TOP_FILES = ("model_index.json", "limits.json")
_SMALL = (".json", ".txt")
_HALF = ".fp16."
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(.+\.safetensors)")
_HTTP_TIMEOUT = httpx2.Timeout(60.0)
_FILL_AGAIN = "fill the volume again: modal run worker/app.py::download_weights"


class FileRecord(BaseModel):
    """What one file must be."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What a model's folder must hold, and where it came from. Files by relative POSIX path."""

    model_config = ConfigDict(frozen=True)

    version: int = Field(default=1, ge=1, le=1)
    source: str
    revision: str | None = Field(default=None, description="commit of the hub")
    asked_revision: str | None = Field(default=None, description="branch, tag or commit asked for")
    filled_at: str
    files: dict[str, FileRecord]

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(record.bytes for record in self.files.values())


def model_name(source: str) -> str:
    """The folder's name for `source`: its last part, without `.safetensors`.

    Raises:
        ValueError: nothing is left that could name a folder.
    """
    path = unquote(urlsplit(source).path) if "://" in source else source
    last = path.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")
    if not name:
        raise ValueError(
            f"BASE_MODEL is {source!r}: it must be a hub name such as {SDXL_CONFIG}, an https URL "
            "of a .safetensors file, or a path"
        )
    return name


def select_files(names: Iterable[str], *, half: bool) -> list[str]:
    """Those of a repository's files that an SDXL pipeline is loaded from.

    With `half` the fp16 variant, where all four models have one: half the bytes, and the worker
    computes in 16 bit anyway.

    Raises:
        WeightsError: it is no diffusers pipeline in safetensors.
    """
    present = set(names)
    if "model_index.json" not in present:
        raise WeightsError(
            "it is no diffusers pipeline (model_index.json is missing): name one of its "
            ".safetensors files as owner/repository/file.safetensors"
        )
    small = {
        name
        for name in present
        if name in _TOP_FILES
        or (name.count("/") == 1 and name.split("/")[0] in _FOLDERS and name.endswith(_SMALL))
    }
    indexes = {name for name in small if name.endswith(".json") and ".safetensors.index." in name}
    weights = {
        name
        for name in present
        if name.count("/") == 1 and name.split("/")[0] in _MODELS and name.endswith(".safetensors")
    } | indexes
    variant = {name for name in weights if _HALF in name}
    plain = weights - {n for n in weights if len(n.rpartition("/")[2].split(".")) > 2} | {
        name for name in indexes if _HALF not in name
    }
    for chosen in (variant, plain) if half else (plain, variant):
        if all(any(n.startswith(f"{m}/") for n in chosen - indexes) for m in _MODELS):
            return sorted((small - indexes) | chosen)
    missing = [m for m in _MODELS if not any(n.startswith(f"{m}/") for n in weights)]
    raise WeightsError(
        f"it holds no .safetensors for {', '.join(missing or _MODELS)}: pickled weights are not "
        "read"
    )


def fill(
    root: Path,
    source: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    half: bool = True,
    force: bool = False,
    endpoint: str | None = None,
    config: str = SDXL_CONFIG,
) -> Manifest:
    """Put the model that `source` names into `root`, with its manifest.

    A model that is there and intact is left alone unless `force`; one that is damaged, or was left
    half done, is made anew. `source` is a path (absolute, or
    below `root`), a hub name, `owner/repository/file.safetensors`, or an https URL of one file; a
    single file is turned into a folder once, here, so that a start needs nothing of the hub.

    Args:
        token: of the hub, for what is not public.
        half: keep 16-bit weights.
        endpoint: the hub's address, where it is not the public one.
        config: hub name or folder with the configuration of a single file's pipeline.

    Raises:
        WeightsError: it cannot be fetched, or is no SDXL model.
    """
    name = model_name(source)
    if not force and _manifest_path(root, name).is_file():
        with contextlib.suppress(WeightsError):
            manifest = verify(root, name)
            there = (None, manifest.revision, manifest.asked_revision)
            if manifest.source == _shown(source) and revision in there:
                return manifest
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".staging-{name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    commit: str | None = None
    try:
        path = root / source
        if not path.exists() and _is_path(source):
            raise WeightsError(
                f"{source} is not on the volume: BASE_MODEL names a path there, a hub name "
                "(owner/repository) or an https URL of a .safetensors file"
            )
        if path.is_dir():
            _copy_folder(path, staging, half=half)
        elif path.is_file():
            convert(path, staging, config, half=half)
        elif match := _HUB_FILE.fullmatch(source):
            commit = _from_hub(match[1], staging, revision, token, endpoint, only=match[2])
            single = staging / match[2]
            convert(single, staging, config, half=half)
            single.unlink()
        elif _HUB_NAME.fullmatch(source):
            commit = _from_hub(source, staging, revision, token, endpoint, half=half)
        elif source.startswith(("https://", "http://127.0.0.1:")):
            single = staging / "single.safetensors"
            _download(source, single)
            convert(single, staging, config, half=half)
            single.unlink()
        else:
            raise WeightsError(
                f"{_shown(source)} is no path on the volume, no hub name and no https URL of a "
                ".safetensors file"
            )
        _check_pipeline(staging)
        manifest = Manifest(
            source=_shown(source),
            revision=commit,
            asked_revision=revision,
            filled_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files=_hash_all(staging),
        )
        _take_place(staging, root / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    temporary = root / f".{name}.manifest.part"
    temporary.write_text(manifest.model_dump_json(indent=1))
    temporary.replace(_manifest_path(root, name))
    return manifest


def read_manifest(root: Path, name: str) -> Manifest:
    """What `name` must be.

    Raises:
        WeightsError: there is no manifest, or it cannot be read.
    """
    try:
        return Manifest.model_validate_json(_manifest_path(root, name).read_bytes())
    except FileNotFoundError:
        raise WeightsError(
            f"the volume holds no {name}: run modal run worker/app.py::download_weights"
        ) from None
    except (OSError, ValidationError) as error:
        raise WeightsError(f"the manifest of {name} cannot be read: {_FILL_AGAIN}") from error


def verify(root: Path, name: str, known: Mapping[Path, str] | None = None) -> Manifest:
    """The manifest of `name`, after every file below `root` has been hashed against it.

    Args:
        known: SHA-256 of files that were read already, and hashed while they were: these are not
            read a second time.

    Raises:
        WeightsError: no manifest, or a file is missing, too much, or not what it was.
    """
    manifest = read_manifest(root, name)
    folder = root / name
    present = _relative_files(folder)
    for relative, record in manifest.files.items():
        if relative not in present:
            raise WeightsError(f"{name}/{relative} is missing: {_FILL_AGAIN}")
        size = (folder / relative).stat().st_size
        if size != record.bytes:
            raise WeightsError(
                f"{name}/{relative} has {size} bytes and must have {record.bytes}: {_FILL_AGAIN}"
            )
    if extra := sorted(set(present) - set(manifest.files)):
        raise WeightsError(f"{name}/{extra[0]} is not in the manifest: {_FILL_AGAIN}")
    hashes = {p.relative_to(folder).as_posix(): h for p, h in (known or {}).items()}
    rest = [relative for relative in manifest.files if relative not in hashes]
    hashes |= {relative: record.sha256 for relative, record in _hash_all(folder, rest).items()}
    for relative, sha256 in hashes.items():
        if relative in manifest.files and sha256 != manifest.files[relative].sha256:
            raise WeightsError(f"{name}/{relative} is not what was downloaded: {_FILL_AGAIN}")
    return manifest


def _is_path(source: str) -> bool:
    """Whether `source` can only be a path: neither a hub's name nor a URL has this form."""
    return "://" not in source and (
        source.startswith(("/", "./", "../", "~"))
        or not (_HUB_NAME.fullmatch(source) or _HUB_FILE.fullmatch(source))
    )


def _manifest_path(root: Path, name: str) -> Path:
    return root / f"{name}.manifest.json"


def _shown(source: str) -> str:
    """`source` without a query, which may sign or authorise."""
    return source.partition("?")[0] if "://" in source else source


def _relative_files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _hash_all(folder: Path, names: list[str] | None = None) -> dict[str, FileRecord]:
    """SHA-256 of every file, or of `names`; several at once: hashing lets other threads run."""

    def one(relative: str) -> FileRecord:
        with (folder / relative).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileRecord(sha256=digest, bytes=file.tell())

    names = _relative_files(folder) if names is None else names
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def _take_place(staging: Path, folder: Path) -> None:
    # First the manifest goes: killed in between, the folder is one that nothing vouches for.
    _manifest_path(folder.parent, folder.name).unlink(missing_ok=True)
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _copy_folder(source: Path, staging: Path, *, half: bool) -> None:
    for relative in select_files(_relative_files(source), half=half):
        target = staging / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target)


def _from_hub(
    repository: str,
    staging: Path,
    revision: str | None,
    token: str | None,
    endpoint: str | None,
    *,
    half: bool = True,
    only: str | None = None,
) -> str:
    """Download a pipeline's files, or `only` one; compare hashes with the hub's; the commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint, token=token)
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        if only is not None and only not in siblings:
            raise WeightsError(f"{repository} holds no {only}")
        try:
            chosen = [only] if only else select_files(siblings, half=half)
        except WeightsError as error:
            raise WeightsError(f"{repository} cannot be used: {error}") from None
        api.snapshot_download(
            repository, revision=info.sha, local_dir=staging, allow_patterns=chosen
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"the hub answered {status}" if status else type(error).__name__
        raise WeightsError(
            f"{repository} could not be downloaded ({why}): check the name and the revision, and "
            "that HUGGINGFACE_HUB_TOKEN is in the secret if it is not public"
        ) from error
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    for name in chosen:
        promised = siblings[name].lfs
        if promised is None or not promised.sha256:
            continue
        with (staging / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != promised.sha256:
                raise WeightsError(f"{repository}/{name} is not the file that the hub promised")
    return str(info.sha)


def _download(url: str, path: Path) -> None:
    """One file by URL, streamed. The URL is the operator's own: redirects are followed."""
    try:
        with httpx2.stream("GET", url, follow_redirects=True, timeout=_HTTP_TIMEOUT) as response:
            if response.status_code != 200:
                raise WeightsError(f"{_shown(url)} answered with status {response.status_code}")
            with path.open("wb") as file:
                for chunk in response.iter_bytes(1 << 20):
                    file.write(chunk)
    except httpx2.HTTPError as error:
        raise WeightsError(
            f"{_shown(url)} could not be downloaded ({type(error).__name__})"
        ) from error


def _check_pipeline(folder: Path) -> None:
    """That `folder` is an SDXL pipeline: its class, and every model's weights."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        kind = index.get("_class_name", "")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError("model_index.json is missing or unreadable") from error
    if not str(kind).startswith("StableDiffusionXL"):
        raise WeightsError(f"it is a {_short(kind)}, not a StableDiffusionXLPipeline")
    for model in _MODELS:
        if not list((folder / model).glob("*.safetensors")):
            raise WeightsError(f"{model} has no .safetensors file")


def _short(value: Any) -> str:
    return str(value)[:60] or "pipeline of an unknown kind"
