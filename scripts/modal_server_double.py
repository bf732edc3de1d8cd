"""A double of Modal's servers, as far as a deployment speaks to them, on loopback.

Duty: answer the calls of the real `modal` package's deployment with ids, and keep what was said:
functions, images, uploaded files, volumes, secrets. Nothing is built or run.
Must not know: what is deployed.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from grpclib.server import Server, Stream
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

BUILDER_VERSION = "2025.06"


@dataclass
class Said:
    """What a deployment told the servers. Keys are ids or names that the double gave or got."""

    functions: dict[str, api_pb2.FunctionData] = field(default_factory=dict)
    images: dict[str, api_pb2.ImageGetOrCreateRequest] = field(default_factory=dict)
    mounts: dict[str, api_pb2.MountGetOrCreateRequest] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    volumes: dict[str, str] = field(default_factory=dict)  # id → name
    secrets: dict[str, api_pb2.SecretGetOrCreateRequest] = field(default_factory=dict)
    methods: dict[str, api_pb2.FunctionPrecreateRequest] = field(default_factory=dict)
    published: api_pb2.AppPublishRequest | None = None
    messages: list[Message] = field(default_factory=list)


class ModalServerDouble:
    """Answers by the name of the call; a call that it does not know is an error naming it."""

    def __init__(self) -> None:
        self.said = Said()
        self._next = 0

    def _id(self, prefix: str) -> str:
        self._next += 1
        return f"{prefix}-{self._next}"

    def answer(self, call: str, request: Any) -> Message:
        """The answer to one call.

        Raises:
            GRPCError: the double has no such call.
        """
        method = getattr(self, f"_{call}", None)
        if method is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"the double does not answer {call}")
        self.said.messages.append(request)
        result: Message = method(request)
        return result

    def _ClientHello(self, _: Any) -> Message:
        return api_pb2.ClientHelloResponse(image_builder_version=BUILDER_VERSION)

    def _AppGetOrCreate(self, _: Any) -> Message:
        return api_pb2.AppGetOrCreateResponse(app_id=self._id("ap"))

    def _AppGetByDeploymentName(self, _: Any) -> Message:
        return api_pb2.AppGetByDeploymentNameResponse()

    def _AppCreate(self, _: Any) -> Message:
        return api_pb2.AppCreateResponse(app_id=self._id("ap"))

    def _AppHeartbeat(self, _: Any) -> Message:
        return empty_pb2.Empty()

    def _AppClientDisconnect(self, _: Any) -> Message:
        return empty_pb2.Empty()

    def _AppPublish(self, request: Any) -> Message:
        self.said.published = request
        return api_pb2.AppPublishResponse(url="https://modal.invalid/app")

    def _EnvironmentGetOrCreate(self, _: Any) -> Message:
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=self._id("en"),
            metadata=api_pb2.EnvironmentMetadata(
                name="main",
                settings=api_pb2.EnvironmentSettings(image_builder_version=BUILDER_VERSION),
            ),
        )

    def _VolumeGetOrCreate(self, request: Any) -> Message:
        volume_id = self._id("vo")
        self.said.volumes[volume_id] = request.deployment_name
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume_id,
            metadata=api_pb2.VolumeMetadata(name=request.deployment_name),
        )

    def _VolumeCommit(self, _: Any) -> Message:
        return api_pb2.VolumeCommitResponse()

    def _VolumeReload(self, _: Any) -> Message:
        return empty_pb2.Empty()

    def _SecretGetOrCreate(self, request: Any) -> Message:
        secret_id = self._id("st")
        self.said.secrets[secret_id] = request
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id)

    def _MountPutFile(self, request: Any) -> Message:
        self.said.files[request.sha256_hex] = request.data
        return api_pb2.MountPutFileResponse(exists=True)

    def _MountBatchedCheckExistence(self, request: Any) -> Message:
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self.said.files]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def _MountGetOrCreate(self, request: Any) -> Message:
        mount_id = self._id("mo")
        self.said.mounts[mount_id] = request
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id)

    def _ImageGetOrCreate(self, request: Any) -> Message:
        image_id = self._id("im")
        self.said.images[image_id] = request
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id,
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=api_pb2.ImageMetadata(image_builder_version=BUILDER_VERSION),
        )

    def _FunctionPrecreate(self, request: Any) -> Message:
        function_id = self._id("fu")
        self.said.methods[request.function_name] = request
        return api_pb2.FunctionPrecreateResponse(
            function_id=function_id, handle_metadata=_handle(request)
        )

    def _FunctionCreate(self, request: Any) -> Message:
        data = request.function_data
        if not data.ranked_functions:  # a function without a list of GPUs comes as one
            data = api_pb2.FunctionData(
                function_name=request.function.function_name,
                webhook_config=request.function.webhook_config,
                ranked_functions=[
                    api_pb2.FunctionData.RankedFunction(rank=0, function=request.function)
                ],
            )
        self.said.functions[data.function_name] = data
        return api_pb2.FunctionCreateResponse(
            function_id=request.existing_function_id or self._id("fu"),
            function_data=data,
            handle_metadata=api_pb2.FunctionHandleMetadata(function_name=data.function_name),
        )

    def _ClassCreate(self, _: Any) -> Message:
        return api_pb2.ClassCreateResponse(class_id=self._id("cs"))


def _handle(request: Any) -> api_pb2.FunctionHandleMetadata:
    return api_pb2.FunctionHandleMetadata(
        function_name=request.function_name,
        method_handle_metadata={
            name: api_pb2.FunctionHandleMetadata(function_name=definition.function_name)
            for name, definition in request.method_definitions.items()
        },
    )


def _service(double: ModalServerDouble) -> ModalClientBase:
    """A grpclib service whose every method asks `double`."""

    def handler(call: str) -> Any:
        async def handle(_self: Any, stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            await stream.send_message(double.answer(call, request))

        return handle

    calls = ModalClientBase.__abstractmethods__
    service_class = type("Service", (ModalClientBase,), {call: handler(call) for call in calls})
    service: ModalClientBase = service_class()
    return service


@contextmanager
def modal_server_double() -> Iterator[tuple[str, ModalServerDouble]]:
    """A running double: its URL for MODAL_SERVER_URL, and what it heard."""
    double = ModalServerDouble()
    loop = asyncio.new_event_loop()
    door = socket.create_server(("127.0.0.1", 0))
    port = door.getsockname()[1]
    started = threading.Event()
    server: Server | None = None

    async def serve() -> None:
        nonlocal server
        server = Server([_service(double)])
        await server.start(sock=door)
        started.set()

    async def end() -> None:
        if server is not None:
            server.close()
            await server.wait_closed()
        loop.stop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(20)
    try:
        yield f"http://127.0.0.1:{port}", double
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(10)
