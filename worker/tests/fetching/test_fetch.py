"""The guarded fetch against servers that lie, stall and lead astray. All of them are real ones on
loopback; only the name server is a double."""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from sdxl_contract.errors import LoraDownloadFailed, Overloaded
from sdxl_worker.fetching.addresses import is_allowed, pinned_address
from sdxl_worker.fetching.budget import ByteBudget
from sdxl_worker.fetching.download import Fetcher, FetchPolicy
from sdxl_worker.fetching.proof import Piece, Proof
from testkit.worker import FileServer

pytestmark = pytest.mark.process


DATA = b"weights" * 1000
LOOPBACK = FetchPolicy(max_bytes=1 << 20, timeout_s=20, allow_loopback=True)


class ResolverDouble:
    """A name server whose answers a test scripts; the last one is given from then on."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    fetching = Fetcher(LOOPBACK)
    yield fetching
    await fetching.aclose()


async def reason(fetching: Fetcher, url: str, **options: Any) -> str:
    """Why the download of `url` is refused; its signature must not be in what is said."""
    with pytest.raises(LoraDownloadFailed) as refusal:
        await fetching.download(url, **options)
    said = refusal.value.body().model_dump_json()
    assert "secret" not in said
    assert refusal.value.details is not None
    return str(refusal.value.details["reason"])


def answer(
    files: FileServer, path: str, headers: dict[str, str], body: bytes, status: int = 200
) -> str:
    """Script exactly these headers and bytes; returns the URL."""

    def script(handler: Any) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    files.scripts[path] = script
    return files.url(path)


async def test_a_file_arrives_whole_and_hashed(fetcher: Fetcher, files: FileServer) -> None:
    fetched = await fetcher.download(files.add(DATA))

    assert fetched is not None
    assert bytes(fetched.data) == DATA
    assert fetched.sha256 == hashlib.sha256(DATA).hexdigest()


async def test_an_unchanged_file_is_not_sent_again(fetcher: Fetcher, files: FileServer) -> None:
    url = files.add(DATA)
    first = await fetcher.download(url)
    assert first is not None

    assert await fetcher.download(url, etag=first.etag) is None


# --- what is held already -------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
async def test_whoever_has_the_file_shows_it_by_a_piece(
    fetcher: Fetcher, files: FileServer, ranges: bool
) -> None:
    url, piece = files.add(DATA), Proof.of(DATA).any_piece()
    files.ranges = ranges

    fetched = await fetcher.download(url, piece=piece)

    # A server without ranges sends the whole file, which then speaks for itself.
    assert (fetched is None) is ranges
    assert fetched is None or bytes(fetched.data) == DATA


@pytest.mark.parametrize("data", [b"other" * 1400, b"", DATA[:-1], b"w"])
async def test_a_hash_and_a_url_that_works_are_not_enough(
    fetcher: Fetcher, files: FileServer, data: bytes
) -> None:
    piece = Piece.of(DATA, len(DATA) - 100, len(DATA))
    digest = hashlib.sha256(DATA).hexdigest()

    why = await reason(fetcher, files.add(data), sha256=digest, piece=piece)

    assert why == "hash_mismatch"
    assert files.hits == ["/lora.safetensors"] * 2


def test_no_two_proofs_ask_for_the_same_places() -> None:
    data = bytes(range(256)) * 4096
    asked = {Proof.of(data).any_piece().start for _ in range(20)}
    assert len(asked) > 10


def test_a_proof_asks_for_weights_and_not_for_what_every_header_holds() -> None:
    header = b"{}" + b" " * 99_998
    data = len(header).to_bytes(8, "little") + header + bytes(range(256)) * 100
    assert all(piece.start >= 8 + len(header) for piece in Proof.of(data).pieces)
    # Zeros anybody can answer: they are asked for only where there is nothing else.
    zeros = (2).to_bytes(8, "little") + b"{}" + bytes(200_000) + bytes(range(256)) * 1000
    assert all(piece.end > 200_010 for piece in Proof.of(zeros).pieces)
    assert Proof.of(bytes(100)).any_piece().matches(bytes(92))


# --- how much at once -----------------------------------------------------------------------------


async def test_bytes_of_all_downloads_stay_within_one_budget(
    fetcher: Fetcher, files: FileServer
) -> None:
    url = files.add(DATA)
    budget = ByteBudget(2 * len(DATA))
    with budget.share() as one, budget.share() as two:
        await fetcher.download(url, share=one)
        await fetcher.download(url, share=two)
        assert budget.held == 2 * len(DATA)

        with budget.share() as three, pytest.raises(Overloaded) as full:
            await fetcher.download(url, share=three)
        assert full.value.retry_after
        with pytest.raises(LoraDownloadFailed, match="together"):
            one.take(len(DATA) + 1)
        assert budget.held == 2 * len(DATA)
    assert budget.held == 0


async def test_a_failed_download_gives_its_bytes_back(fetcher: Fetcher, files: FileServer) -> None:
    budget = ByteBudget(1 << 30)
    with budget.share() as share:
        with pytest.raises(LoraDownloadFailed):
            await fetcher.download(files.add(DATA), sha256="0" * 64, share=share)
        url = answer(files, "/x", {"Content-Length": "1000"}, b"x" * 10)
        with pytest.raises(LoraDownloadFailed):
            await fetcher.download(url, share=share)
        assert budget.held == 0


# --- where it may go ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::10.0.0.1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "3fff::1",
        "2001::8.8.8.8",
        "2002:808:808::1",
        "::8.8.8.8",
        "2606:4700::5efe:10.0.0.1",
        "2606:4700::1111%eth0",
        "5f00::1",
        "4000::1",
        "100::1",
        "192.0.0.192",
        "192.88.99.1",
        "100.100.100.200",
        "168.63.129.16",
        "161.26.0.10",
        "166.9.0.1",
        "192.80.8.124",
        "fd20:ce::254",
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_allowed(ipaddress.ip_address(address), allow_loopback=False)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address), allow_loopback=False)


@pytest.mark.parametrize(
    "answers", [["10.1.2.3"], ["8.8.8.8", "10.1.2.3"], ["::ffff:169.254.169.254"], ["fe80::1%eth0"]]
)
async def test_a_name_that_leads_to_a_private_address_is_refused(
    files: FileServer, answers: list[str]
) -> None:
    fetching = Fetcher(LOOPBACK, ResolverDouble(answers))

    assert await reason(fetching, f"https://bucket.example:{files.port}/x?secret") == (
        "refused_address"
    )


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "localhost",
        "LOCALHOST.",
    ],
)
async def test_no_spelling_of_loopback_gets_through(files: FileServer, host: str) -> None:
    strict = Fetcher(FetchPolicy(max_bytes=1 << 20))
    files.add(DATA)

    assert await reason(strict, f"https://{host}:{files.port}/lora.safetensors?secret") in (
        "refused_address",
        "unreachable",  # where this system's resolver does not know the spelling
    )
    assert files.hits == []


async def test_the_address_that_was_checked_is_the_one_connected_to(files: FileServer) -> None:
    """A name server that answers otherwise the second time is not asked a second time."""
    resolver = ResolverDouble(["127.0.0.1"], ["10.0.0.1"])
    fetching = Fetcher(LOOPBACK, resolver)
    files.add(DATA)

    fetched = await fetching.download(f"http://bucket.example:{files.port}/lora.safetensors")

    assert fetched is not None
    assert resolver.asked == 1
    assert await reason(fetching, f"https://bucket.example:{files.port}/x") == "refused_address"


async def test_the_server_still_hears_the_name(files: FileServer) -> None:
    heard = []
    files.scripts["/x"] = lambda handler: heard.append(handler.headers["Host"])
    fetching = Fetcher(LOOPBACK, ResolverDouble(["127.0.0.1"]))

    await reason(fetching, f"http://bucket.example:{files.port}/x")

    assert heard == [f"bucket.example:{files.port}"]


def redirect(files: FileServer, path: str, target: str, status: int = 302) -> str:
    return answer(files, path, {"Location": target, "Content-Length": "0"}, b"", status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(fetcher: Fetcher, files: FileServer, status: int) -> None:
    url = redirect(files, "/x", files.add(DATA, "/inner"), status)

    fetched = await fetcher.download(url)

    assert fetched is not None
    assert bytes(fetched.data) == DATA
    assert files.hits == ["/x", "/inner"]


async def test_three_redirects_are_followed_and_no_fourth(
    fetcher: Fetcher, files: FileServer
) -> None:
    files.add(DATA, "/0")
    for number in range(1, 5):
        redirect(files, f"/{number}", f"../{number - 1}?secret=1")

    assert await fetcher.download(files.url("/3")) is not None
    files.hits.clear()
    assert await reason(fetcher, files.url("/4")) == "redirect"
    assert files.hits == ["/4", "/3", "/2", "/1"]


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("https://10.0.0.1/x?secret", "refused_address"),
        ("https://inner.example/x?secret", "refused_address"),
        ("https://168.63.129.16/x?secret", "refused_address"),
        ("http://8.8.8.8/x?secret", "refused_scheme"),
        ("file:///etc/passwd?secret", "refused_scheme"),
        ("https://user:secret@files.example/x", "refused_host"),
        ("https://evil.test/x?secret", "refused_host"),
        ("https://files.example:22/x?secret", "refused_host"),
        ("//[::1/secret", "redirect"),
        ("", "redirect"),
    ],
)
async def test_every_hop_stands_under_the_whole_guard(
    files: FileServer, location: str, why: str
) -> None:
    policy = replace(
        LOOPBACK, allowed_hosts=("127.0.0.1", "8.8.8.8", "10.0.0.1", "168.63.129.16", ".example")
    )
    fetching = Fetcher(policy, ResolverDouble(["10.0.0.1"]))

    assert await reason(fetching, redirect(files, "/x", location)) == why
    assert files.hits == ["/x"]


async def test_a_public_host_does_not_lead_to_this_computer(
    files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where loopback is allowed, as in development."""
    connections = Fetcher(LOOPBACK)._connections
    with pytest.raises(LoraDownloadFailed):
        await connections.address(connections.look_at(files.url("/x")), loopback=False)


async def test_nothing_of_one_exchange_is_sent_with_the_next(
    fetcher: Fetcher, files: FileServer
) -> None:
    """Connections go to addresses: a cookie of one host would reach another's on the same one."""
    target = answer(files, "/x", {"Set-Cookie": "who=secret; Path=/", "Content-Length": "1"}, b"x")
    redirect(files, "/r", target)
    heard: list[list[str]] = []

    def listen(handler: Any) -> None:
        heard.append(sorted(name.lower() for name in handler.headers))

    files.scripts["/y"] = listen

    await fetcher.download(files.url("/r"))
    await reason(fetcher, files.url("/y"))

    assert heard == [["accept", "accept-encoding", "connection", "host", "user-agent"]]


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/x?secret",
        "ftp://example.com/x?secret",
        "file:///etc/passwd?secret",
        "https://",
        "https:///x?secret",
        "https://host:99999/x?secret",
        "https://[::1/x?secret",
        "https://host/\x00?secret",
        "https://host/a\r\nX-Evil: 1?secret",
        "https://host/\ud800?secret",
    ],
)
async def test_what_is_no_https_url_is_refused(fetcher: Fetcher, url: str) -> None:
    assert await reason(fetcher, url) == "refused_scheme"


@pytest.mark.parametrize(
    "error", [OSError("no such host"), UnicodeError("label too long")], ids=["unknown", "no name"]
)
async def test_a_name_that_cannot_be_resolved_is_an_error_of_the_url(error: Exception) -> None:
    fetching = Fetcher(LOOPBACK, ResolverDouble(error))

    assert await reason(fetching, "https://bucket.example/x?secret") == "unreachable"


async def test_a_name_that_no_name_server_can_hold_is_refused(fetcher: Fetcher) -> None:
    assert await reason(fetcher, f"https://{'a' * 64}.example/x?secret") == "unreachable"


async def test_a_user_name_in_the_url_is_refused(fetcher: Fetcher) -> None:
    assert await reason(fetcher, "https://user:secret@example.com/x") == "refused_host"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("bucket.r2.example", True),
        ("deep.bucket.r2.example", True),
        ("r2.example", False),
        ("evilr2.example", False),
        ("r2.example.evil.test", False),
        ("only.test", True),
        ("sub.only.test", False),
        ("ONLY.test", True),
        ("only.test.", True),
        ("bucket.r2.example.", True),
        (".r2.example", False),
        ("x..r2.example", False),
        ("evil.test\\.r2.example", False),
        ("evil.test%2f.r2.example", False),
        ("evil.test\u3002r2.example", False),
        ("\uff4fnly.test", False),
        ("only.te\u017ft", False),
    ],
)
async def test_only_listed_hosts_are_asked(host: str, allowed: bool) -> None:
    resolver = ResolverDouble(["10.0.0.1"])
    policy = FetchPolicy(max_bytes=1, allowed_hosts=(".r2.example", "only.test"))

    why = await reason(Fetcher(policy, resolver), f"https://{host}/x?secret")

    assert why == ("refused_address" if allowed else "refused_host")
    assert resolver.asked == int(allowed)


async def test_every_address_of_a_name_must_be_allowed() -> None:
    with pytest.raises(LoraDownloadFailed):
        await pinned_address(
            "x.example",
            443,
            allow_loopback=True,
            resolver=ResolverDouble(["127.0.0.1", "10.0.0.1"]),
        )


@pytest.mark.parametrize(
    "target", ["/a/../b?x=1", "/a%2Fb?sig=a%2Fb+c%3D&x=~'()*!", "/a//b?q=%zz", "/?a=[b]&c={d}|"]
)
async def test_path_and_query_arrive_byte_for_byte(
    fetcher: Fetcher, files: FileServer, target: str
) -> None:
    heard = []
    path = target.partition("?")[0]
    files.scripts[path] = lambda handler: heard.append(handler.path)

    await reason(fetcher, f"http://127.0.0.1:{files.port}{target}")

    assert heard == [target]


# --- how much, how fast, how honest ---------------------------------------------------------------


async def test_a_file_that_says_it_is_too_large_is_refused_unread(
    fetcher: Fetcher, files: FileServer
) -> None:
    url = answer(files, "/x", {"Content-Length": str(1 << 40)}, b"x")

    assert await reason(fetcher, url) == "too_large"


async def test_a_file_without_length_is_cut_off_at_the_limit(files: FileServer) -> None:
    fetching = Fetcher(FetchPolicy(max_bytes=1000, allow_loopback=True))
    sent = threading.Event()

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(100_000):
                handler.wfile.write(b"x" * 4096)
        except OSError:
            sent.set()

    files.scripts["/x"] = endless

    assert await reason(fetching, files.url("/x")) == "too_large"
    await fetching.aclose()
    assert sent.wait(20)


async def test_a_file_shorter_than_promised_is_refused(fetcher: Fetcher, files: FileServer) -> None:
    url = answer(files, "/x", {"Content-Length": "1000"}, b"x" * 10)

    assert await reason(fetcher, url) in ("truncated", "unreachable")


async def test_more_bytes_than_promised_are_not_read(fetcher: Fetcher, files: FileServer) -> None:
    url = answer(files, "/x", {"Content-Length": "3"}, b"abcdef")

    fetched = await fetcher.download(url)

    assert fetched is not None
    assert bytes(fetched.data) == b"abc"


async def test_dripped_bytes_are_given_up(
    files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdxl_worker.fetching.download._SLOW_AFTER_S", 0.2)
    fetching = Fetcher(FetchPolicy(1 << 20, min_bytes_per_second=10_000, allow_loopback=True))
    assert await _drip(fetching, files) == "timeout"


async def test_a_download_ends_at_its_deadline_however_steadily_it_drips(
    files: FileServer,
) -> None:
    fetching = Fetcher(
        FetchPolicy(1 << 20, timeout_s=0.4, min_bytes_per_second=0, allow_loopback=True)
    )
    assert await _drip(fetching, files) == "timeout"


async def _drip(fetching: Fetcher, files: FileServer) -> str:
    """One byte every 20 ms for as long as the client stays; why the client left."""
    gone = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not gone.wait(0.02):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    files.scripts["/drip"] = drip
    try:
        return await reason(fetching, files.url("/drip"))
    finally:
        gone.set()
        await fetching.aclose()


async def test_headers_that_never_end_are_given_up(files: FileServer) -> None:
    fetching = Fetcher(FetchPolicy(1 << 20, timeout_s=0.4, allow_loopback=True))
    gone = threading.Event()

    def slow_headers(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not gone.wait(0.02):
            handler.wfile.write(b"X-A: b\r\n")
            handler.wfile.flush()

    files.scripts["/x"] = slow_headers
    try:
        assert await reason(fetching, files.url("/x")) in ("timeout", "unreachable")
    finally:
        gone.set()


async def test_a_compressed_answer_is_refused_not_unfolded(
    fetcher: Fetcher, files: FileServer
) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(bomb))}

    assert await reason(fetcher, answer(files, "/x", headers, bomb)) == "encoding"
    for words in ("br", "zstd", "deflate", "aws-chunked,gzip", "gzip, aws-chunked", "x-new"):
        headers["Content-Encoding"] = words
        assert await reason(fetcher, answer(files, "/x", headers, bomb)) == "encoding", words


@pytest.mark.parametrize(
    "words", ["aws-chunked", "AWS-Chunked", "aws-chunked,", "identity", "aws-chunked, identity", ""]
)
async def test_an_intact_file_is_taken_whatever_word_its_store_has_for_plain(
    fetcher: Fetcher, files: FileServer, words: str
) -> None:
    headers = {"Content-Encoding": words, "Content-Length": str(len(DATA))}

    fetched = await fetcher.download(answer(files, "/x", headers, DATA))

    assert fetched is not None
    assert bytes(fetched.data) == DATA


async def test_another_file_than_promised_is_refused(fetcher: Fetcher, files: FileServer) -> None:
    assert await reason(fetcher, files.add(DATA), sha256="0" * 64) == "hash_mismatch"


async def test_a_server_that_hangs_up_is_unreachable(fetcher: Fetcher, files: FileServer) -> None:
    files.scripts["/x"] = lambda handler: handler.connection.close()

    assert await reason(fetcher, files.url("/x")) == "unreachable"


@pytest.mark.parametrize(("status", "worker_status"), [(404, 400), (403, 400), (500, 502)])
async def test_an_error_of_the_server_is_reported_as_one(
    fetcher: Fetcher, files: FileServer, status: int, worker_status: int
) -> None:
    url = answer(files, "/x", {"Content-Length": "2"}, b"no", status)

    with pytest.raises(LoraDownloadFailed) as refusal:
        await fetcher.download(url)
    assert refusal.value.status == worker_status
    assert refusal.value.details == {
        "reason": "http_status",
        "host": "127.0.0.1",
        "http_status": status,
    }


async def test_an_endless_error_page_is_not_read_to_its_end(
    fetcher: Fetcher, files: FileServer
) -> None:
    url = answer(files, "/x", {"Content-Length": str(1 << 30)}, b"x" * 100_000, 404)

    assert await reason(fetcher, url) == "http_status"


async def test_a_refusal_of_an_expired_url_says_so(fetcher: Fetcher, files: FileServer) -> None:
    answer(files, "/x", {"Content-Length": "2"}, b"no", 403)

    assert await reason(fetcher, files.url("/x", "Expires=1&secret")) == "expired"
    assert await reason(fetcher, files.url("/x", "Expires=9999999999&secret")) == "http_status"


# --- uploads --------------------------------------------------------------------------------------


async def test_an_upload_arrives(fetcher: Fetcher, files: FileServer) -> None:
    await fetcher.upload(files.url("/out.png"), DATA, "image/png")

    assert files.puts == {"/out.png": DATA}


@pytest.mark.parametrize(
    "url", ["https://10.0.0.1/x?secret", "https:///x?secret", "https://u:secret@host/x"]
)
async def test_an_upload_stands_under_the_same_guard(fetcher: Fetcher, url: str) -> None:
    with pytest.raises(LoraDownloadFailed) as refusal:
        await fetcher.upload(url, DATA, "image/png")

    said = refusal.value.body().model_dump_json()
    assert '"field":"output_url"' in said
    assert "secret" not in said
    assert "LoRA" not in refusal.value.message


async def upload_refused(fetching: Fetcher, url: str) -> LoraDownloadFailed:
    with pytest.raises(LoraDownloadFailed) as refusal:
        await fetching.upload(url, DATA, "image/png")
    assert refusal.value.details is not None
    assert refusal.value.details["field"] == "output_url"
    return refusal.value


@pytest.mark.parametrize(
    ("status", "why", "says"),
    [(307, "redirect", 400), (303, "redirect", 400), (403, "http_status", 400),
     (500, "http_status", 502)],
)  # fmt: skip
async def test_a_server_that_does_not_store_the_picture_is_told_by_reason(
    fetcher: Fetcher, files: FileServer, status: int, why: str, says: int
) -> None:
    files.put_status = status
    error = await upload_refused(fetcher, files.url("/out.png"))

    assert error.details is not None
    assert (error.details["reason"], error.status) == (why, says)


async def test_an_upload_that_takes_too_long_is_a_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        fetching = Fetcher(replace(LOOPBACK, timeout_s=0.3))
        error = await upload_refused(fetching, f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        await fetching.aclose()

    assert (error.details or {})["reason"] == "timeout"
    assert "took longer than 0.3 s" in error.message


async def test_where_a_picture_may_go_is_known_before_there_is_one(
    fetcher: Fetcher, files: FileServer
) -> None:
    await fetcher.check_output(files.url("/out.png"))
    assert files.hits == []
    for url in ("https://10.0.0.1/x", "http://93.184.216.34/x", "nonsense", "https://a:99999/"):
        with pytest.raises(LoraDownloadFailed) as refusal:
            await fetcher.check_output(url)
        assert "output_url" in refusal.value.message


@pytest.mark.parametrize("etag", ["no quotes", '"\xe9"', '"' + "a" * 600 + '"', '"a" "b"', ""])
async def test_an_etag_that_could_not_be_sent_back_is_not_kept(
    fetcher: Fetcher, files: FileServer, etag: str
) -> None:
    url = answer(files, "/e", {"Content-Length": str(len(DATA)), "ETag": etag}, DATA)
    fetched = await fetcher.download(url)

    assert fetched is not None
    assert bytes(fetched.data) == DATA
    assert fetched.etag is None


async def test_a_304_that_nobody_asked_for_is_no_redirect(
    fetcher: Fetcher, files: FileServer
) -> None:
    assert await reason(fetcher, answer(files, "/n", {}, b"", 304)) == "http_status"
