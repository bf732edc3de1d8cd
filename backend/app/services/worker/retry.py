"""Whether a failed call is worth another, and after how many seconds; or what it has to wait for.

Duty: the contract's retry table as pure functions. Must not know: HTTP, clocks, stamina.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sdxl_contract.errors import ContractError, ErrorCode

MAX_BACKOFF_S = 30.0
_OUT_OF_MEMORY_RETRIES = 2
# Reasons (`details["reason"]`) that no repetition mends, whatever the code says.
PERMANENT_REASONS = frozenset(
    {"modal_disabled", "modal_not_deployed", "modal_refused", "not_json", "redirect", "too_large"}
)
_BOUNDED = frozenset(
    {
        ErrorCode.MODEL_LOAD_FAILED,
        ErrorCode.GENERATION_FAILED,
        ErrorCode.TIMEOUT,
        ErrorCode.OVERLOADED,
    }
)


# What an edge says while nobody is behind it.
_NOBODY_THERE = frozenset({408, 502, 503, 504, 520, 521, 522, 523, 524, 529})
# The worker, or its container, went away with the request.
_WORKER_WENT = frozenset(
    {"connection_lost", "modal_function_ended", "modal_no_request", "modal_unclear"}
)
# A file that the worker fetches by a URL that was signed for it.
DOWNLOADS = frozenset({ErrorCode.LORA_DOWNLOAD_FAILED, ErrorCode.IMAGE_DOWNLOAD_FAILED})
_FILE_AWAY = frozenset({"unreachable", "timeout", "truncated"})


class Outage(Enum):
    """What is away, where a failure is none of the request's own and will pass."""

    WORKER = "worker"
    BUSY = "busy"
    LORA = "lora"  # its file cannot be fetched at the moment


def is_permanent(error: ContractError) -> bool:
    """Whether only somebody who sets it up otherwise can mend it."""
    return (error.details or {}).get("reason") in PERMANENT_REASONS


def is_expired(error: ContractError) -> bool:
    """Whether a LoRA's file was not given because its signed URL was too old."""
    reason = (error.details or {}).get("reason")
    return error.code is ErrorCode.LORA_DOWNLOAD_FAILED and reason == "expired"


def outage(error: ContractError) -> Outage | None:
    """What `error` says is away; None where waiting would not help."""
    details = error.details or {}
    reason = details.get("reason")
    if reason in PERMANENT_REASONS:
        return None
    if error.code is ErrorCode.OVERLOADED:
        return Outage.BUSY
    if error.code is ErrorCode.MODEL_LOAD_FAILED or reason in _WORKER_WENT:
        return Outage.WORKER
    if error.code in DOWNLOADS:
        status = details.get("http_status")
        passes = isinstance(status, int) and (status >= 500 or status == 429)
        is_away = passes or reason in _FILE_AWAY
        return Outage.LORA if is_away else None
    if reason == "bad_answer" and details.get("http_status") in _NOBODY_THERE:
        return Outage.WORKER
    return None


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently. Seconds.

    `awaits_worker`: a worker that is away or busy is asked again here; else whoever calls waits for
    it, and hears of it at once.
    """

    max_retries: int = 3
    backoff_base_s: float = 1.0
    awaits_worker: bool = True


@dataclass(frozen=True)
class Failures:
    """What has failed so far, this failure included."""

    total: int
    with_this_code: int


def retry_after(
    error: ContractError, failures: Failures, policy: RetryPolicy, jitter: float = 0.0
) -> float | None:
    """Seconds to wait before the next attempt; None when there is to be none.

    Args:
        jitter: from 0 to 1; spreads the clients that failed at the same moment.
    """
    if failures.total > policy.max_retries:
        return None
    if not policy.awaits_worker and outage(error) in (Outage.WORKER, Outage.BUSY):
        return None
    reason = (error.details or {}).get("reason")
    if reason in PERMANENT_REASONS:
        return None
    if error.code in DOWNLOADS:
        # Only an expired URL is mended by signing anew, and only once.
        return 0.0 if is_expired(error) and failures.with_this_code == 1 else None
    if error.code is ErrorCode.CUDA_OOM:
        if failures.with_this_code > _OUT_OF_MEMORY_RETRIES:
            return None
    elif error.code not in _BOUNDED:
        return None
    backoff = policy.backoff_base_s * 2.0 ** (failures.total - 1) * (1 + 0.25 * jitter)
    return max(min(backoff, MAX_BACKOFF_S), error.retry_after or 0.0)
