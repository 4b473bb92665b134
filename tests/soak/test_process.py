"""Several processes on one file, and that a feature that is switched off is not even imported."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.api import person
from tests.e2e.server import DEADLINE, StartService, run_to_end


async def test_four_workers_share_an_empty_file(start: StartService) -> None:
    service = start(USERSVC_WORKERS="4")
    service.wait_for_output("Application startup complete", count=4)
    same = person()
    # A connection a request, so that the system spreads them over the workers.
    async with httpx.AsyncClient(
        base_url=service.url, trust_env=False, timeout=DEADLINE, limits=httpx.Limits(max_keepalive_connections=0)
    ) as client:
        answers = await asyncio.gather(
            *(client.post("/register", json=same) for _ in range(20)),
            *(client.post("/register", json=person()) for _ in range(40)),
        )
        codes = [answer.status_code for answer in answers]
        assert sorted(codes[:20]) == [201] + [409] * 19
        assert codes[20:] == [201] * 40
        page = (await client.get("/users?limit=200")).json()["data"]
    registered = {answer.json()["data"]["id"] for answer in answers if answer.status_code == 201}
    assert {user["id"] for user in page} == registered
    assert len(page) == 41

    assert service.stop() == 0

    assert "Traceback" not in service.output
    assert service.output.count("Application shutdown complete") == 4
    assert service.output.count("sent a welcome mail") == 41


@pytest.mark.parametrize(
    ("library", "on", "off"),
    [
        ("limits", {"REGISTER_RATE": "5/minute"}, {"REGISTER_RATE": ""}),
        ("aiosmtplib", {"SMTP_URL": "smtp://localhost", "MAIL_FROM": "alice@example.com"}, {}),
        ("aiohttp_cors", {"CORS_ORIGINS": "https://app.example.com"}, {}),
    ],
)
def test_what_is_switched_off_takes_no_memory(
    library: str, on: dict[str, str], off: dict[str, str], tmp_path: Path
) -> None:
    program = f"import sys; from usersvc.bootstrap import create_asgi_app as c; c(); print({library!r} in sys.modules)"
    told = [
        run_to_end(
            tmp_path,
            {"USERSVC_DATABASE_URL": "memory://"} | {f"USERSVC_{name}": value for name, value in settings.items()},
            [sys.executable, "-c", program],
        ).stdout.strip()
        for settings in (on, off)
    ]
    assert told == ["True", "False"]
