"""`/embeddings`: textual inversions, words that a file taught."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Form, Response, UploadFile

from app.api.deps import OwnerDep, RightsDep, ServicesDep
from app.api.edge.upload_form import UploadRoute
from app.schemas.common import Page
from app.schemas.inputs.words import EmbeddingOut
from sdxl_contract.prompts.words import Token

router = APIRouter(prefix="/embeddings", tags=["embeddings"], route_class=UploadRoute)


@router.post("", status_code=201, responses={200: {"model": EmbeddingOut}})
async def upload_embedding(
    file: UploadFile,
    name: Annotated[Token, Form()],
    owner: OwnerDep,
    services: ServicesDep,
    rights: RightsDep,
    response: Response,
) -> EmbeddingOut:
    """Keep a `.safetensors` file with `clip_l` and `clip_g`: 201, or 200 where these bytes are
    there.

    `name` is the word that stands for it in prompts, one for each of the owner's embeddings.
    """
    await rights.check()  # the file may have taken long to come
    uploaded = await services.embeddings.upload(owner, await file.read(), name)
    if not uploaded.is_new:
        response.status_code = 200
    return EmbeddingOut.model_validate(uploaded.embedding)


@router.get("")
async def list_embeddings(owner: OwnerDep, services: ServicesDep) -> Page[EmbeddingOut]:
    """All embeddings, by name."""
    rows = await services.embeddings.list(owner)
    return Page(items=[EmbeddingOut.model_validate(row) for row in rows])


@router.get("/{embedding_id:uuid}")
async def read_embedding(
    embedding_id: uuid.UUID, owner: OwnerDep, services: ServicesDep
) -> EmbeddingOut:
    """One embedding."""
    return EmbeddingOut.model_validate(await services.embeddings.get(owner, embedding_id))


@router.delete("/{embedding_id:uuid}", status_code=204)
async def delete_embedding(embedding_id: uuid.UUID, owner: OwnerDep, services: ServicesDep) -> None:
    """Remove an embedding that no waiting content is drawn with."""
    await services.embeddings.delete(owner, embedding_id)
