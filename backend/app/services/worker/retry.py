"""Whether a failed call is worth another, and after how many seconds.

Duty: the contract's retry table as a pure function. Must not know: HTTP, clocks, stamina.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently. Seconds."""

    max_retries: int = 3
    backoff_base_s: float = 1.0


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
    reason = (error.details or {}).get("reason")
    if reason in PERMANENT_REASONS:
        return None
    if error.code is ErrorCode.LORA_DOWNLOAD_FAILED:
        # Only an expired URL is mended by signing anew, and only once.
        return 0.0 if reason == "expired" and failures.with_this_code == 1 else None
    if error.code is ErrorCode.CUDA_OOM:
        if failures.with_this_code > _OUT_OF_MEMORY_RETRIES:
            return None
    elif error.code not in _BOUNDED:
        return None
    backoff = policy.backoff_base_s * 2.0 ** (failures.total - 1) * (1 + 0.25 * jitter)
    return max(min(backoff, MAX_BACKOFF_S), error.retry_after or 0.0)
