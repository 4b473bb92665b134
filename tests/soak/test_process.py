"""Several worker processes on one file; disabled features are not imported."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.api import person
from tests.e2e.server import DEADLINE, StartService, run_to_end


async def test_four_workers_share_a_new_database(start: StartService) -> None:
    service = start(USERSVC_WORKERS="4")
    service.wait_for_output("Application startup complete", count=4)
    same = person()
    # A new connection for each request, so that the system distributes them over the workers.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=DEADLINE, limits=limits) as client:
        people = [same] * 20 + [person() for _ in range(40)]
        responses = await asyncio.gather(*(client.post("/register", json=each) for each in people))
        users = (await client.get("/users?limit=200")).json()["data"]
    statuses = [response.status_code for response in responses]
    assert sorted(statuses[:20]) == [201] + [409] * 19
    assert statuses[20:] == [201] * 40
    registered = [response.json()["data"]["id"] for response in responses if response.status_code == 201]
    assert sorted(user["id"] for user in users) == sorted(registered)

    assert service.stop() == 0
    assert "Traceback" not in service.output
    assert service.output.count("Application shutdown complete") == 4
    assert service.output.count("sent a welcome mail") == 41


OPTIONAL = {
    "aiohttp_cors": {"USERSVC_CORS_ORIGINS": "https://app.example.com"},
    "aiosmtplib": {"USERSVC_SMTP_URL": "smtp://localhost", "USERSVC_MAIL_FROM": "alice@example.com"},
    "limits": {"USERSVC_REGISTER_RATE": "5/minute"},
}
PROGRAM = (
    f"import sys; from usersvc.bootstrap import create_asgi_app as c; c(); print(*{set(OPTIONAL)} & set(sys.modules))"
)


@pytest.mark.parametrize("library", [None, *OPTIONAL])
def test_the_library_of_a_disabled_feature_is_not_imported(library: str | None, tmp_path: Path) -> None:
    settings = {"USERSVC_DATABASE_URL": "memory://"} | OPTIONAL.get(library or "", {})
    assert run_to_end(tmp_path, settings, [sys.executable, "-c", PROGRAM]).stdout == f"{library or ''}\n"
