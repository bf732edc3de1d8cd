"""A double of Modal's servers, as far as a deployment speaks to them, on loopback.

Duty: answer the calls that the real `modal` package and its command line make for a deployment,
and keep what was said: functions, images, uploaded files, volumes, secrets, proxy tokens, calls.
Nothing is built; a call of a function is answered at once, without running it.
Must not know: what is deployed.
"""

from __future__ import annotations

import asyncio
import pickle
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
from modal.client import _Client
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

BUILDER_VERSION = "2025.06"
WORKSPACE = "double"


@dataclass
class Said:
    """What a deployment told the servers. Keys are ids or names that the double gave or got."""

    functions: dict[str, api_pb2.FunctionData] = field(default_factory=dict)
    images: dict[str, api_pb2.ImageGetOrCreateRequest] = field(default_factory=dict)
    mounts: dict[str, api_pb2.MountGetOrCreateRequest] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    volumes: dict[str, str] = field(default_factory=dict)  # id → name
    dicts: list[str] = field(default_factory=list)
    secrets: dict[str, api_pb2.SecretGetOrCreateRequest] = field(default_factory=dict)
    methods: dict[str, api_pb2.FunctionPrecreateRequest] = field(default_factory=dict)
    published: api_pb2.AppPublishRequest | None = None
    called: list[str] = field(default_factory=list)  # names of functions
    proxy_tokens: list[str] = field(default_factory=list)  # names
    messages: list[Message] = field(default_factory=list)


class ModalServerDouble:
    """Answers by the name of the call; a call that it does not know is an error naming it.

    Args:
        kept_secrets: secrets that exist, by name; only these can be looked up. None: any can.
        login: whether the credentials are known.
        failing: names of functions whose calls end with an exception; `url`: looking up the worker.
        control: the URL that the deployed control gets; nobody answers there.
    """

    def __init__(
        self,
        kept_secrets: dict[str, dict[str, str]] | None = None,
        *,
        login: bool = True,
        failing: frozenset[str] = frozenset(),
        control: str = "http://127.0.0.1:9",
    ) -> None:
        self.said = Said()
        self.kept_secrets = kept_secrets
        self.deleted_proxy_tokens: set[str] = set()
        self.board: dict[bytes, bytes] = {}  # of the one Dict that a deployment has
        self._login = login
        self._failing = failing
        self._control = control
        self._next = 0
        self._names: dict[str, str] = {}  # id of a function or call → name of the function

    def _id(self, prefix: str) -> str:
        self._next += 1
        return f"{prefix}-{self._next}"

    def answer(self, call: str, request: Any) -> Message | list[Message]:
        """The answer to one call; several messages where the call is one that streams.

        Raises:
            GRPCError: the double has no such call.
        """
        method = getattr(self, f"_{call}", None)
        if method is None:
            raise GRPCError(Status.UNIMPLEMENTED, f"the double does not answer {call}")
        self.said.messages.append(request)
        result: Message | list[Message] = method(request)
        return result

    def _TokenInfoGet(self, _: Any) -> Message:
        if not self._login:
            raise GRPCError(Status.UNAUTHENTICATED, "the token is unknown")
        return api_pb2.TokenInfoGetResponse(token_id="ak-double", workspace_name=WORKSPACE)

    def _WorkspaceNameLookup(self, _: Any) -> Message:
        return api_pb2.WorkspaceNameLookupResponse(username=WORKSPACE)

    def _WebhookTokenCreate(self, request: Any) -> Message:
        self.said.proxy_tokens.append(request.name)
        number = len(self.said.proxy_tokens)
        return api_pb2.TokenCreateResponse(
            token_id=f"wk-double-{number}", token_secret=f"ws-double-{number}"
        )

    def _WebhookTokenList(self, _: Any) -> Message:
        tokens = [
            api_pb2.WebhookToken(token_id=f"wk-double-{number}", name=name)
            for number, name in enumerate(self.said.proxy_tokens, 1)
            if f"wk-double-{number}" not in self.deleted_proxy_tokens
        ]
        return api_pb2.WebhookTokenListResponse(tokens=tokens)

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

    def _DictGetOrCreate(self, request: Any) -> Message:
        self.said.dicts.append(request.deployment_name)
        return api_pb2.DictGetOrCreateResponse(
            dict_id=f"di-{request.deployment_name}",
            metadata=api_pb2.DictMetadata(name=request.deployment_name),
        )

    def _DictUpdate(self, request: Any) -> Message:
        self.board |= {entry.key: entry.value for entry in request.updates}
        return api_pb2.DictUpdateResponse(created=True)

    def _DictPop(self, request: Any) -> Message:
        value = self.board.pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    def _DictContents(self, _: Any) -> list[Message]:
        return [api_pb2.DictEntry(key=key, value=value) for key, value in self.board.items()]

    def _VolumeCommit(self, _: Any) -> Message:
        return api_pb2.VolumeCommitResponse()

    def _VolumeReload(self, _: Any) -> Message:
        return empty_pb2.Empty()

    def _SecretList(self, _: Any) -> Message:
        return api_pb2.SecretListResponse(
            items=[
                api_pb2.SecretListItem(
                    label=name, secret_id=f"st-{name}", metadata=api_pb2.SecretMetadata(name=name)
                )
                for name in self.kept_secrets or {}
            ]
        )

    def _SecretGetOrCreate(self, request: Any) -> Message:
        kept = self.kept_secrets
        name = request.deployment_name
        if kept is not None and name:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                overwrite = api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
                if name in kept and request.object_creation_type != overwrite:
                    raise GRPCError(Status.ALREADY_EXISTS, f"Secret {name} exists")
                kept[name] = dict(request.env_dict)
            elif name not in kept:
                raise GRPCError(Status.NOT_FOUND, f"Secret {name} not found")
            elif missing := set(request.required_keys) - set(kept[name]):
                raise GRPCError(Status.NOT_FOUND, f"Secret {name} is missing keys: {missing}")
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
        self._names[function_id] = request.function_name
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

    def _ClassGet(self, _: Any) -> Message:
        if "url" in self._failing:
            raise GRPCError(Status.NOT_FOUND, "the servers know no such class")
        return api_pb2.ClassGetResponse(class_id=self._id("cs"))

    def _FunctionGet(self, request: Any) -> Message:
        published = self.said.published
        if published is None or published.name != request.app_name:
            raise GRPCError(Status.NOT_FOUND, f"App {request.app_name} not found")
        name = request.object_tag
        shown = "server" if name == "Server" else "worker-web"
        address = f"https://{WORKSPACE}--{request.app_name}-{shown}.modal.run"
        methods = self.said.functions[name].method_definitions
        return api_pb2.FunctionGetResponse(
            function_id=self._id("fu"),
            function=self.said.functions[name],
            handle_metadata=api_pb2.FunctionHandleMetadata(
                function_name=name,
                web_url=self._control if name == "control" else "",
                _experimental_flash_urls=[address] if name == "Server" else [],
                method_handle_metadata={
                    method: api_pb2.FunctionHandleMetadata(
                        function_name=f"Worker.{method}",
                        web_url=address if definition.HasField("webhook_config") else "",
                    )
                    for method, definition in methods.items()
                },
            ),
        )

    def _FunctionMap(self, request: Any) -> Message:
        name = self._names[request.function_id]
        self.said.called.append(name)
        call = self._id("fc")
        self._names[call] = name
        return api_pb2.FunctionMapResponse(
            function_call_id=call,
            pipelined_inputs=[api_pb2.FunctionPutInputsResponseItem(input_id=self._id("in"))],
        )

    def _FunctionGetOutputs(self, request: Any) -> Message:
        name = self._names[request.function_call_id]
        kind = api_pb2.GenericResult
        if name in self._failing:
            result = kind(status=kind.GENERIC_STATUS_FAILURE, exception=f"{name} failed here")
        else:
            result = kind(status=kind.GENERIC_STATUS_SUCCESS, data=pickle.dumps(None))
        output = api_pb2.FunctionGetOutputsItem(
            result=result, data_format=api_pb2.DATA_FORMAT_PICKLE
        )
        return api_pb2.FunctionGetOutputsResponse(outputs=[output])

    def _AppGetLogs(self, _: Any) -> Message:
        return api_pb2.TaskLogsBatch(app_done=True)


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
            answer = double.answer(call, request)
            for message in answer if isinstance(answer, list) else [answer]:
                await stream.send_message(message)

        return handle

    calls = ModalClientBase.__abstractmethods__
    service_class = type("Service", (ModalClientBase,), {call: handler(call) for call in calls})
    service: ModalClientBase = service_class()
    return service


@contextmanager
def modal_server_double(
    double: ModalServerDouble | None = None,
) -> Iterator[tuple[str, ModalServerDouble]]:
    """A running double: its URL for MODAL_SERVER_URL, and what it heard."""
    double = double or ModalServerDouble()
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
        # modal keeps one client for the process: it would go on asking this double, not the next.
        _Client._client_from_env = None
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(10)
