"""LoRAs kept by content: budgets hold, damage is found, nothing half-written is ever read."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from sdxl_worker.lora import DiskTier, LoraCache, ParsedLora, parse_lora
from testkit.loras.making import Rig, lora_file, save


def a_lora(rig: Rig, seed: int) -> ParsedLora:
    names = [name for name in rig.targets.shapes if name.endswith("to_q")][:5]
    return parse_lora(save(lora_file(rig.model, "lora", seed=seed, modules=names)), rig.targets)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_least_recently_used_goes_when_the_budget_is_full(rig: Rig) -> None:
    loras = [a_lora(rig, seed) for seed in range(3)]
    cache = LoraCache(loras[0].nbytes * 2)
    cache.put(loras[0])
    cache.put(loras[1])
    assert cache.get(loras[0].sha256.upper()) is loras[0]
    cache.put(loras[2])
    assert cache.get(loras[1].sha256) is None
    assert [held for held, _ in cache.contents()] == [loras[0].sha256, loras[2].sha256]
    assert (cache.stats.hits, cache.stats.misses, cache.stats.evictions) == (1, 1, 1)
    assert cache.stats.nbytes == 2 * loras[0].nbytes
    cache.clear()
    assert cache.stats.nbytes == cache.stats.entries == 0


def test_putting_the_same_again_counts_it_once(rig: Rig) -> None:
    lora = a_lora(rig, 0)
    cache = LoraCache(10 * lora.nbytes)
    for _ in range(3):
        cache.put(lora)
    assert (cache.stats.entries, cache.stats.nbytes) == (1, lora.nbytes)


def test_a_lora_beyond_the_budget_is_not_kept_and_drives_nothing_out(rig: Rig) -> None:
    small = a_lora(rig, 0)
    large = parse_lora(save(lora_file(rig.model, "lora", share=1.0)), rig.targets)
    cache = LoraCache(small.nbytes)
    cache.put(small)
    cache.put(large)
    assert cache.get(small.sha256) is small
    assert cache.get(large.sha256) is None


def test_threads_do_not_break_the_books(rig: Rig) -> None:
    loras = [a_lora(rig, seed) for seed in range(6)]
    cache = LoraCache(loras[0].nbytes * 3)

    def work() -> None:
        for number in range(200):
            cache.put(loras[number % 6])
            cache.get(loras[(number * 5) % 6].sha256)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        cache.stats.nbytes == sum(nbytes for _, nbytes in cache.contents()) <= 3 * loras[0].nbytes
    )


def test_the_disk_gives_back_what_was_put(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "tier", 1000)
    data = b"x" * 300
    assert tier.get(sha(data)) is None
    assert tier.put(sha(data), data)
    assert tier.get(sha(data)) == bytearray(data)
    # Another process, later.
    assert DiskTier(tmp_path / "tier", 1000).get(sha(data)) == bytearray(data)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_removed_not_served(tmp_path: Path, damage: str) -> None:
    tier = DiskTier(tmp_path, 1000)
    data = bytes(range(256))
    tier.put(sha(data), data)
    (path,) = tmp_path.glob("*.safetensors")
    broken = {"flip": b"\xff" + data[1:], "cut": data[:-1], "empty": b""}[damage]
    path.write_bytes(broken)
    assert tier.get(sha(data)) is None
    assert not path.exists()
    assert tier.stats.rejected == 1


def test_the_disk_keeps_its_budget_by_last_use(tmp_path: Path) -> None:
    import os

    tier = DiskTier(tmp_path, 250)
    files = [bytes([number]) * 100 for number in range(3)]
    for age, data in ((300, files[0]), (200, files[1])):
        tier.put(sha(data), data)
        path = tmp_path / f"{sha(data)}.safetensors"
        stamp = path.stat().st_mtime - age
        os.utime(path, (stamp, stamp))
    assert tier.get(sha(files[0])) is not None
    tier.put(sha(files[2]), files[2])
    assert tier.get(sha(files[1])) is None
    assert tier.get(sha(files[0])) == bytearray(files[0])
    assert not tier.put("0" * 64, bytes(300))
    assert tier.stats.nbytes == 200


def test_only_a_hash_becomes_a_path(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 1000)
    for name in ("../../etc/passwd", "", "a" * 63, "g" * 64, "a" * 64 + "/x"):
        with pytest.raises(ValueError, match="sha256"):
            tier.get(name)


def test_a_write_that_was_cut_off_is_swept_away_and_never_read(tmp_path: Path) -> None:
    (tmp_path / "half.part").write_bytes(b"half")
    tier = DiskTier(tmp_path, 1000)
    assert list(tmp_path.iterdir()) == []
    assert tier.stats.entries == 0


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = DiskTier(tmp_path, 1000)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not tier.put(sha(b"abc"), b"abc")
    assert list(tmp_path.iterdir()) == []
