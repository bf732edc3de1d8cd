"""Textual inversion: the vectors of a word are that word, bit for bit, and nothing stays behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sdxl_contract.errors import InvalidPrompt, LoraLoadFailed
from sdxl_contract.prompts.words import PromptSyntax, read_words
from sdxl_contract.request import GenerateRequest
from sdxl_worker.drawing.prompts import Conditioning, encode_words, token_widths
from sdxl_worker.embeddings import Embedding
from sdxl_worker.fetching.embedding_source import read_embedding
from testkit.worker import SIDE, FileServer, RunningWorker, png_of

BASE = {"width": SIDE, "height": SIDE, "steps": 2, "seed": 5}


@pytest.fixture
def pipe(worker: RunningWorker) -> Any:
    assert worker.engine._ready is not None
    return worker.engine._ready.model.pipe


def rows_of(pipe: Any, word: str) -> tuple[Tensor, Tensor]:
    """What both encoders hold of a real word."""
    first, second = (
        encoder.get_input_embeddings().weight.detach()[
            tokenizer(word, add_special_tokens=False)["input_ids"]
        ]
        for encoder, tokenizer in (
            (pipe.text_encoder, pipe.tokenizer),
            (pipe.text_encoder_2, pipe.tokenizer_2),
        )
    )
    return first, second


def file_of(vectors: tuple[Tensor, Tensor]) -> bytes:
    return save({"clip_l": vectors[0].contiguous(), "clip_g": vectors[1].contiguous()})


def encoded(pipe: Any, prompt: str, negative: str, *embeddings: Embedding) -> Conditioning:
    sides = (
        read_words(prompt, PromptSyntax.WEIGHTS, 1),
        read_words(negative, PromptSyntax.WEIGHTS, 1, "negative_prompt"),
    )
    with torch.no_grad():
        return encode_words(pipe, sides, None, 0, embeddings)[0]


def same(one: Conditioning, other: Conditioning) -> bool:
    return all(torch.equal(a, vars(other)[name]) for name, a in vars(one).items())


@pytest.mark.parametrize(
    ("named", "real"),
    [
        ("a my-style.2, on white", "a red apple, on white"),
        ("MY-STYLE.2", "red apple"),
        ("a (my-style.2:1.4) house", "a (red apple:1.4) house"),
        ("my-style.2 my-style.2", "red apple red apple"),
        ("my-style.2x and xmy-style.2", "my-style.2x and xmy-style.2"),
        ("house, " * 40 + "my-style.2", "house, " * 40 + "red apple"),
    ],
)
def test_a_words_vectors_are_that_word(pipe: Any, named: str, real: str) -> None:
    style = Embedding("my-style.2", rows_of(pipe, "red apple"), "")
    assert same(encoded(pipe, named, named, style), encoded(pipe, real, real))


def test_several_embeddings_are_told_apart_the_longest_first(pipe: Any) -> None:
    apple, house = (
        Embedding(t, rows_of(pipe, w), "") for t, w in (("x", "apple"), ("x-y", "house"))
    )
    found = encoded(pipe, "x-y and x", "x", apple, house)
    assert same(found, encoded(pipe, "house and apple", "apple"))


def test_words_that_the_prompt_uses_are_never_taken_for_vectors(pipe: Any) -> None:
    """The lowest ids would be chosen first: here the prompt uses them."""
    tokenizer = pipe.tokenizer
    low = [t for t in range(2, 30) if t not in tokenizer.all_special_ids]
    text = tokenizer.decode(low)
    style = Embedding("mystyle", rows_of(pipe, "apple"), "")
    assert same(encoded(pipe, f"{text} mystyle", "", style), encoded(pipe, f"{text} apple", ""))


def test_too_many_vectors_are_refused(pipe: Any) -> None:
    first, second = rows_of(pipe, "apple")
    style = Embedding("big", (first[:1].repeat(75, 1), second[:1].repeat(75, 1)), "")
    with pytest.raises(InvalidPrompt, match="at most 320 windows"):
        encoded(pipe, "big " * 161, "", style)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda first, second: b"no file", "not safetensors"),
        (lambda first, second: file_of((first, second))[:-8], "not safetensors"),
        (lambda first, second: save({"emb_params": first.contiguous()}), "clip_l and clip_g"),
        (lambda first, second: file_of((second, first)), "clip_l is 1x"),
        (lambda first, second: file_of((first, second[0])), "clip_g is"),
        (lambda first, second: file_of((first[:0], second[:0])), "not a positive number"),
        (lambda first, second: file_of((first.repeat(76, 1), second)), "has 76 vectors"),
        (lambda first, second: file_of((first.repeat(2, 1), second)), "different numbers"),
        (lambda first, second: file_of((first / 0, second)), "not finite"),
        (lambda first, second: file_of((first.to(torch.int8), second)), "floating-point"),
    ],
)
def test_what_is_no_embedding_for_the_model_is_refused_by_name(
    pipe: Any, change: Callable[[Tensor, Tensor], bytes], says: str
) -> None:
    first, second = (vectors[:1] for vectors in rows_of(pipe, "apple"))
    with pytest.raises(LoraLoadFailed) as caught:
        read_embedding(change(first, second), token_widths(pipe), "embeddings[3]")
    assert caught.value.message.startswith("embeddings[3]: ")
    assert says in caught.value.message
    assert caught.value.details is not None
    assert caught.value.details["field"] == "embeddings[3]"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read(pipe: Any, kind: torch.dtype) -> None:
    first, second = (vectors.to(kind) for vectors in rows_of(pipe, "apple"))
    found = read_embedding(file_of((first, second)), token_widths(pipe), "embeddings[0]")
    assert torch.equal(found[0], first.float())


def test_a_picture_by_an_embedding_is_the_real_word_s_and_leaves_a_clean_model(
    client: httpx2.Client, files: FileServer, pipe: Any
) -> None:
    data = file_of(rows_of(pipe, "apple"))
    digest = hashlib.sha256(data).hexdigest()
    style = {"url": files.add(data, "/style.safetensors"), "token": "mystyle", "sha256": digest}
    real, named, again = (
        client.post("/generate-image", json={**BASE, **body}).json()
        for body in (
            {"prompt": "apple", "negative_prompt": "an apple"},
            {"prompt": "mystyle", "negative_prompt": "an mystyle", "embeddings": [style]},
            {"prompt": "apple", "negative_prompt": "an apple"},
        )
    )
    assert png_of(named).tobytes() == png_of(real).tobytes()
    assert named["model_clean"] is True
    assert named["structure_clean"] is True
    assert again["image_base64"] == real["image_base64"]
    assert png_of(named).info["parameters"].endswith(f'TI hashes: "mystyle: {digest[:12]}"')


def test_the_hook_is_gone_even_when_the_encoding_fails_and_would_be_found_if_it_were_not(
    worker: RunningWorker, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.engine._ready is not None
    structure = worker.engine._ready.structure
    style = Embedding("mystyle", rows_of(pipe, "apple"), "")

    def fails(number: int, ids: Tensor, skip: int) -> tuple[Tensor, Tensor]:
        raise RuntimeError("encoder")

    sides = (read_words("mystyle", PromptSyntax.WEIGHTS, 1),) * 2
    with pytest.raises(RuntimeError, match="encoder"):
        encode_words(pipe, sides, fails, 0, [style])
    assert structure.difference() is None

    kept: list[RemovableHandle] = []
    remove = RemovableHandle.remove
    with monkeypatch.context() as patched:
        patched.setattr(RemovableHandle, "remove", lambda handle: kept.append(handle))
        encoded(pipe, "mystyle", "", style)
    found = structure.difference()
    for handle in kept:
        remove(handle)
    assert found is not None
    assert "embedding" in found
    assert structure.difference() is None


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"prompt": "apple"}, 422, "embeddings[0].token"),
        ({"token": "two words"}, 422, "embeddings[0].token"),
        ({"token": "a:b"}, 422, "embeddings[0].token"),
        ({"token": "<lora"}, 422, "embeddings[0].token"),
        ({"url": "http://127.0.0.2:9/refused"}, 400, "embeddings[0]"),
        ({"sha256": "0" * 64}, 400, "embeddings[0]"),
    ],
)
def test_a_wrong_embedding_is_refused_by_name_and_shows_no_url(
    client: httpx2.Client,
    files: FileServer,
    pipe: Any,
    change: dict[str, Any],
    code: int,
    field: str,
) -> None:
    url = files.add(file_of(rows_of(pipe, "apple")), "/style.safetensors")
    style = {"url": url, "token": "mystyle"} | {k: v for k, v in change.items() if k != "prompt"}
    body = {**BASE, "prompt": change.get("prompt", "a mystyle"), "embeddings": [style]}
    answer = client.post("/generate-image", json=body)
    assert answer.status_code == code, answer.text
    assert answer.json()["details"]["field"] == field
    assert "secret" not in answer.text
    if field == "embeddings[0]":
        assert "embeddings[0]" in answer.json()["error"]


def test_a_file_over_the_limit_is_not_read_to_its_end(
    client: httpx2.Client, files: FileServer
) -> None:
    style = {"url": files.add(b"\0" * (3 * 2**20), "/big.safetensors"), "token": "mystyle"}
    body = {**BASE, "prompt": "mystyle", "embeddings": [style]}
    answer = client.post("/generate-image", json=body)
    assert answer.status_code == 400
    assert answer.json()["details"]["reason"] == "too_large"


def test_two_embeddings_of_one_word_are_refused() -> None:
    one = {"url": "https://x.example/a", "token": "style"}
    with pytest.raises(ValueError, match="same token"):
        GenerateRequest(prompt="style", embeddings=[one, one | {"token": "STYLE"}])
