"""What settings come to together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.core.settings import Settings
from app.serve import explain


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({"modal_endpoint_url": "http://127.0.0.1:8001"}, 15.0),
        # A look would keep the container of a scale-to-zero endpoint awake, and paid for.
        ({"modal_endpoint_url": "https://x--sdxl.modal.run"}, 86400.0),
        ({"modal_endpoint_url": "https://x--sdxl.modal.run", "model_refresh_seconds": 15}, 15.0),
    ],
)
def test_a_serverless_endpoint_is_looked_at_rarely_unless_told(
    values: dict[str, Any], seconds: float
) -> None:
    assert Settings(**values).model_look_seconds == seconds


KEYS: dict[str, Any] = {"r2_access_key_id": "id", "r2_secret_access_key": "secret"}
ACCOUNT = "https://0123abc.r2.cloudflarestorage.com"


@pytest.mark.parametrize(
    ("endpoint", "bucket", "address"),
    [
        (ACCOUNT, "pictures", ACCOUNT),
        (f"{ACCOUNT}/", "pictures", ACCOUNT),
        (f"{ACCOUNT}/pictures", "pictures", ACCOUNT),
        (f"{ACCOUNT}/pictures/", "pictures/", ACCOUNT),
        (f"{ACCOUNT}//pictures//", "pictures", ACCOUNT),
        (f' "{ACCOUNT}/pictures"\n', "'pictures'", ACCOUNT),
        (ACCOUNT.removeprefix("https://"), "pictures", ACCOUNT),
        (f"{ACCOUNT.removeprefix('https://')}/pictures", "s3://pictures", ACCOUNT),
        (ACCOUNT.replace("://", "://pictures."), "pictures", ACCOUNT),
        (
            "https://0123abc.eu.r2.cloudflarestorage.com/pictures",
            "pictures",
            "https://0123abc.eu.r2.cloudflarestorage.com",
        ),
        (
            "https://my.pictures.fra1.digitaloceanspaces.com",
            "my.pictures",
            "https://fra1.digitaloceanspaces.com",
        ),
        ("http://127.0.0.1:9000/pictures", "pictures", "http://127.0.0.1:9000"),
        ("http://[::1]:9000", "pictures", "http://[::1]:9000"),
        # A host of one's own may begin as the bucket, and a gateway may lie below a path.
        ("https://pictures.example.com", "pictures", "https://pictures.example.com"),
        ("https://x.example/storage/v1/s3", "pictures", "https://x.example/storage/v1/s3"),
        ("https://x.example/v1/s3/pictures", "pictures", "https://x.example/v1/s3"),
    ],
)
def test_a_store_s_address_is_understood_as_dashboards_display_it(
    endpoint: str, bucket: str, address: str
) -> None:
    found = Settings(r2_endpoint_url=endpoint, r2_bucket_name=bucket, **KEYS)
    assert found.r2_endpoint_url == address
    assert found.r2_bucket_name in ("pictures", "my.pictures")
    assert found.r2_region == "auto"


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://pictures.s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://s3.amazonaws.com/pictures", "us-east-1"),
    ],
)
def test_amazon_s_region_is_read_from_its_address(endpoint: str, region: str) -> None:
    found = Settings(r2_endpoint_url=endpoint, r2_bucket_name="pictures", **KEYS)
    assert found.r2_region == region
    assert found.r2_endpoint_url is not None
    assert found.r2_endpoint_url.startswith("https://s3.")
    assert not found.r2_endpoint_url.endswith("/pictures")
    own = Settings(r2_endpoint_url=endpoint, r2_bucket_name="pictures", r2_region="x-1", **KEYS)
    assert own.r2_region == "x-1"


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"r2_endpoint_url": f"{ACCOUNT}/other"}, "R2_BUCKET_NAME"),
        ({"r2_endpoint_url": f"{ACCOUNT}/pictures", "r2_bucket_name": None}, "R2_BUCKET_NAME"),
        ({"r2_endpoint_url": "https://pub-0123.r2.dev"}, "R2_PUBLIC_URL"),
        ({"r2_endpoint_url": "https://dash.cloudflare.com/0123abc/r2"}, "<account>"),
        ({"r2_endpoint_url": ACCOUNT.replace("https", "http")}, "https://"),
        ({"r2_endpoint_url": "https://r2.cloudflarestorage.com"}, "<account>"),
        ({"r2_endpoint_url": f"{ACCOUNT}?x=1"}, "<account>"),
        ({"r2_endpoint_url": "https://id:secret@x.example"}, "password"),
        ({"r2_endpoint_url": f"{ACCOUNT}\nx"}, "line break"),
        ({"r2_endpoint_url": "127.0.0.1:9000"}, "https://"),
        ({"r2_endpoint_url": "s3://pictures"}, "https://"),
        ({"r2_bucket_name": "pictures/folder"}, "alone"),
        ({"r2_bucket_name": "my pictures"}, "alone"),
        ({"r2_public_url": f"{ACCOUNT}/pictures"}, "public address"),
        ({"r2_public_url": "https://pictures.example?x"}, "?"),
        ({"modal_endpoint_url": "worker"}, "https://"),
        ({"modal_endpoint_url": "https://"}, "host"),
        ({"public_base_url": "https://x.example/#a"}, "#"),
    ],
)
def test_a_wrong_address_stops_the_start_and_says_what_to_write(
    values: dict[str, Any], advice: str
) -> None:
    good = {"r2_endpoint_url": ACCOUNT, "r2_bucket_name": "pictures", **KEYS}
    with pytest.raises(ValidationError) as caught:
        Settings(**good | values)
    assert advice in explain(caught.value)
    assert "secret@" not in explain(caught.value)


def test_public_addresses_are_understood_as_dashboards_display_them() -> None:
    for shown in ("pub-0123.r2.dev", " https://pub-0123.r2.dev/ ", "'https://pub-0123.r2.dev'"):
        assert Settings(r2_public_url=shown).r2_public_url == "https://pub-0123.r2.dev"
    assert Settings(cors_origins="https://a.example/ , ").allowed_origins == ["https://a.example"]


def test_a_blank_value_is_unset_and_quotes_are_no_part_of_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODAL_API_TOKEN", ' "a b"c" ')
    monkeypatch.setenv("R2_BUCKET_NAME", "  ")
    monkeypatch.setenv("PORT", " 8123 ")
    found = Settings()
    assert found.modal_api_token is not None
    assert found.modal_api_token.get_secret_value() == 'a b"c'
    assert (found.r2_bucket_name, found.port) == (None, 8123)
