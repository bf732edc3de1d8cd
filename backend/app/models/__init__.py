"""Tables, one file each."""

from app.models.access import ApiKey, PageSession
from app.models.avatar import Avatar, PromptStyle, Wildcard
from app.models.base import LOCAL_OWNER, Base
from app.models.base_model import SeenBaseModel
from app.models.batch import Batch
from app.models.board import Board, BoardImage, Share
from app.models.content import Content, DialectCall, GenerationEvent, GenerationRecord, Status
from app.models.image import Image, InputImage, SentFile
from app.models.limits import PAUSED, CallRate, QueueTurn, RemovedCost
from app.models.lora_model import Embedding, LoraModel, LoraSource
from app.models.takedown import Takedown, TakenDownPicture
from app.models.webhook import DeliveryState, Webhook, WebhookAttempt, WebhookDelivery

__all__ = [
    "LOCAL_OWNER",
    "PAUSED",
    "ApiKey",
    "Avatar",
    "Base",
    "Batch",
    "Board",
    "BoardImage",
    "CallRate",
    "Content",
    "DeliveryState",
    "DialectCall",
    "Embedding",
    "GenerationEvent",
    "GenerationRecord",
    "Image",
    "InputImage",
    "LoraModel",
    "LoraSource",
    "PageSession",
    "PromptStyle",
    "QueueTurn",
    "RemovedCost",
    "SeenBaseModel",
    "SentFile",
    "Share",
    "Status",
    "Takedown",
    "TakenDownPicture",
    "Webhook",
    "WebhookAttempt",
    "WebhookDelivery",
    "Wildcard",
]
