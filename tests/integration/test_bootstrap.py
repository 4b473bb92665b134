# ruff: noqa: ASYNC110  # there is no event for a line in the log

import asyncio
import gc
from pathlib import Path

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.fakes import person
from usersvc.adapters.postgres import PostgresUsers
from usersvc.application.mail_delivery import POLL_INTERVAL
from usersvc.bootstrap import create_asgi_app, create_service_app
from usersvc.config import Settings
from usersvc.setting_parsers import MemoryDatabase, PostgresDatabase, SqliteDatabase

ALICE = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
async def test_the_service_is_assembled_from_settings(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    database: MemoryDatabase | SqliteDatabase | PostgresDatabase = SqliteDatabase(tmp_path / "users.db")
    if kind == "memory":
        database = MemoryDatabase()
    elif kind == "postgres":
        database = PostgresDatabase(request.getfixturevalue("postgres_url"))
    settings = Settings(database=database, bcrypt_cost=4, password_min_length=9, max_body_bytes=1024)

    async with TestClient(TestServer(create_service_app(settings))) as client:
        registered = await client.post("/register", json=ALICE)
        listed = await (await client.get("/users")).json()
        short = await client.post("/register", json={**ALICE, "password": "8 chars!"})
        flaws = await (await client.post("/register", json={**ALICE, "password": "8 chars!", "age": "x"})).json()
        large = await client.post("/register", json={**ALICE, "password": "x" * 1024})
        openapi = await (await client.get("/openapi.json")).json()

    assert (registered.status, short.status, large.status) == (201, 422, 413)
    assert {flaw["field"] for flaw in flaws["errors"]} == {"password", "age"}
    assert [user["email"] for user in listed["data"]] == ["alice@example.com"]
    assert openapi["components"]["schemas"]["Registration"]["properties"]["password"]["minLength"] == 9
    assert "sent a welcome mail to alice@example.com" in caplog.text
    assert "USERSVC_BCRYPT_COST is under 10" in caplog.text
    assert "GET /users and /metrics are open" in caplog.text
    assert (tmp_path / "users.db").exists() == (kind == "sqlite")


async def test_a_short_admin_token_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with TestServer(create_service_app(Settings(database=MemoryDatabase(), admin_token="guess-me"))):
        assert "USERSVC_ADMIN_TOKEN has under 22 characters" in caplog.text


async def test_on_postgresql_a_registration_on_another_host_is_delivered_at_once(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(database=PostgresDatabase(postgres_url), bcrypt_cost=4)
    async with TestServer(create_service_app(settings)), PostgresUsers(postgres_url) as elsewhere:
        await elsewhere.add(person())
        # Long before the outbox is polled.
        async with asyncio.timeout(POLL_INTERVAL.total_seconds() / 3):
            while "sent a welcome mail to alice@example.com" not in caplog.text:
                await asyncio.sleep(0.01)


async def test_the_asgi_application_is_made_from_the_environment_and_excluded_from_garbage_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("usersvc.bootstrap.configure_logging", lambda *_: None)
    monkeypatch.setenv("USERSVC_DATABASE_URL", "memory://")
    app = create_asgi_app()
    gc.unfreeze()
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            response = await client.get("/livez")
        assert response.status_code == 200
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
