"""The commands that show, delete, import and export users, and those that check the settings."""

import asyncio
import io
import json
import re
import signal
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import HASH, HEAD, ID, NOW, Commands, key_of, people
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.application import keyset, user_import
from usersvc.application.user_import import UserImport
from usersvc.cli import users
from usersvc.domain.password import Password

# --- list, show, delete ---------------------------------------------------------------------------------------------


def test_list_prints_one_line_or_json_object_per_user(usersvc: Commands) -> None:
    usersvc.register()
    assert usersvc("users", "list") == (0, "", "no users\n")
    [user] = usersvc.register("jörg@bücher.example")
    registered_at = "2026-01-31T09:30:00.000000Z"
    assert usersvc("users", "list") == (0, f"{user.id}\t{registered_at}\t30\tjörg@bücher.example\n", "")
    document = {"id": str(user.id), "email": "jörg@bücher.example", "age": 30, "registered_at": registered_at}
    assert usersvc("users", "list", "--json") == (0, f"{json.dumps(document, ensure_ascii=False)}\n", "")


@pytest.mark.parametrize("newest", [False, True])
def test_list_reads_pages_and_prints_how_to_continue(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, newest: bool
) -> None:
    monkeypatch.setattr(keyset, "BATCH", 2)
    registered = usersvc.register(*(f"{name}@example.com" for name in "abcde"))
    expected = [str(user.id) for user in registered][:: -1 if newest else 1]
    order = ["--newest"] if newest else []
    code, out, err = usersvc("users", "list", "--limit", "3", *order)
    assert (code, [line.partition("\t")[0] for line in out.splitlines()]) == (0, expected[:3])
    rest = usersvc("users", "list", "--after", err.split()[-1], *order)
    assert ([line.partition("\t")[0] for line in rest.out.splitlines()], rest.err) == (expected[3:], "")


def test_show_accepts_an_id_and_any_spelling_of_the_address(usersvc: Commands) -> None:
    [alice] = usersvc.register("Alice@example.com")
    for who in ("Alice@example.com", "ALICE@EXAMPLE.COM", str(alice.id)):
        code, out, err = usersvc("users", "show", who, "--json")
        assert (code, json.loads(out)["id"], err) == (0, str(alice.id), "")
        assert "Alice@example.com" in usersvc("users", "show", who).out


@pytest.mark.parametrize("command", [["show"], ["delete", "--yes"]])
def test_a_missing_user_is_reported(usersvc: Commands, command: list[str]) -> None:
    usersvc.register("alice@example.com")
    for who in ("bob@example.com", ID):
        assert usersvc.fails("users", *command, who) == "no user has this id or address"
    code, out, err = usersvc("users", *command, "alice")
    assert (code, out) == (2, "")
    assert "Give the id of a user (a UUID) or an email address." in err


def test_delete_removes_mails_and_idempotency_keys(usersvc: Commands) -> None:
    alice, bob = usersvc.register("alice@example.com", "bob@example.com")
    assert usersvc("users", "delete", "--yes", "ALICE@example.com") == (0, f"deleted {alice.id}\n", "")
    assert [record.id for record in usersvc.stored()] == [bob.id]
    assert [entry.event.user_id for entry in usersvc.outbox()] == [bob.id]
    assert usersvc.on_store(lambda users: users.registered_with(key_of("alice@example.com"), at=NOW)) is None
    assert usersvc.on_store(lambda users: users.registered_with(key_of("bob@example.com"), at=NOW)) is not None


@pytest.mark.parametrize(("reply", "left"), [("y\n", 0), ("\n", 1), ("", 1)])
def test_delete_asks_for_confirmation(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, reply: str, left: int
) -> None:
    [alice] = usersvc.register("alice@example.com")
    monkeypatch.setattr(sys, "stdin", io.StringIO(reply))
    code, out, err = usersvc("users", "delete", str(alice.id))
    assert "alice@example.com" in err
    assert (code, out, len(usersvc.stored())) == ((1, "", 1) if left else (0, f"deleted {alice.id}\n", 0))
    assert err.endswith(("usersvc: no user was deleted\n", "usersvc: stopped\n")) == bool(left)


# --- import ---------------------------------------------------------------------------------------------------------


def test_import_stores_users_with_verifiable_hashes_and_can_be_repeated(usersvc: Commands) -> None:
    old = "$2y$05$abcdefghijklmnopqrstuuJle.iZ0HydI0pt1p.fYQNcC2ygoDkde"
    line = f"A@example.com,41,{old},{ID},2001-02-03T04:05:06Z"
    file = usersvc.write("users.csv", f"{HEAD.strip()},id,registered_at\n{line}\n")
    assert usersvc("users", "import", file) == (0, "1 imported, 0 already there, 0 rejected\n", "")
    assert usersvc("users", "import", file) == (0, "0 imported, 1 already there, 0 rejected\n", "")

    [record] = usersvc.stored()
    assert (str(record.id), record.email, record.age) == (ID, "A@example.com", 41)
    assert record.registered_at == datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert usersvc.outbox() == []

    async def verifies() -> bool:
        async with BcryptPasswordHasher(cost=4, workers=1) as hasher:
            return await hasher.verify(Password("pässwörd 🔑"), record.password_hash)

    assert asyncio.run(verifies())


BAD = (
    f"{HEAD}alice@example.com,30,{HASH}\nnobody,17,hunter2\nALICE@example.com,30,{HASH}\nbob@example.com,30,{HASH}\n"
    f"carol@example.com,30,$2b$17${HASH[7:]}\ndora@example.com\n"
)


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_rejected_lines_are_reported_and_written_to_a_file(usersvc: Commands, options: list[str]) -> None:
    file = usersvc.write("users.csv", BAD)
    usersvc.write("rejected", "of an earlier import\n" * 100).chmod(0o644)
    code, out, err = usersvc("users", "import", "--rejected", "rejected", *options, file)

    assert (code, err.splitlines()) == (
        3,
        [
            "line 3: email invalid-email, age out-of-range, password_hash unknown-hash",
            "line 4: email email-taken",
            "line 6: password_hash cost-too-high",
            "line 7: line wrong-number-of-cells",
        ],
    )
    would_be = "would be " if options else ""
    assert out == f"2 {would_be}imported, 0 already there, 4 {would_be}rejected\n"
    written = [json.loads(line) for line in Path("rejected").read_text().splitlines()]
    assert [(each["line"], each["text"]) for each in written] == [
        (number, BAD.splitlines()[number - 1]) for number in (3, 4, 6, 7)
    ]
    assert [reason["code"] for reason in written[0]["reasons"]] == ["invalid-email", "out-of-range", "unknown-hash"]
    assert stat.S_IMODE(Path("rejected").stat().st_mode) == 0o600


def test_only_the_first_rejections_are_printed(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", HEAD + f"nobody,30,{HASH}\n" * 25)
    err = usersvc("users", "import", "--rejected", "rejected", file).err
    assert err.splitlines()[9:] == ["line 11: email invalid-email", "and 15 more"]
    assert stat.S_IMODE(Path("rejected").stat().st_mode) == 0o600
    assert usersvc("users", "import", file).err.endswith("and 15 more; --rejected FILE writes all of them\n")


def test_malformed_csv_stops_the_import_after_the_lines_before(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", f'{people(3)}a@example.com,30,"{HASH}\n{people(700)}')
    assert usersvc.fails("users", "import", file) == (
        "lines 5 to 706 cannot be read: unexpected end of data; nothing from line 5 on was imported; "
        "3 imported, 0 already there, 0 rejected"
    )
    assert len(usersvc.stored()) == 3


def test_a_dry_run_compares_with_stored_users_and_stores_nothing(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", f"{HEAD}Alice@example.com,30,{HASH}\nbob@example.com,30,{HASH}\n")
    assert usersvc("users", "import", "--dry-run", file).out.startswith("2 would be imported")
    assert [*usersvc.folder.iterdir()] == [file]

    usersvc.register("alice@example.com")
    before = usersvc.stored()
    code, out, err = usersvc("users", "import", "--dry-run", file)
    assert (code, err) == (3, "line 2: email email-taken\n")
    assert out == "1 would be imported, 0 already there, 1 would be rejected\n"
    assert usersvc.stored() == before
    # Neither does a real import replace an existing user.
    assert usersvc("users", "import", file).out == "1 imported, 0 already there, 1 rejected\n"
    assert usersvc.stored()[:1] == before


def test_unknown_columns_are_refused_before_anything_is_stored(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", f"name,{HEAD}Al,alice@example.com,30,{HASH}\n")
    assert usersvc.fails("users", "import", file) == "unknown columns: 'name'; see --ignore-unknown"
    assert usersvc("users", "import", "--ignore-unknown", file).code == 0
    assert len(usersvc.stored()) == 1


def test_import_reads_ndjson_from_standard_input(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"email": "alice@example.com", "age": 30, "password_hash": HASH}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert usersvc("users", "import", "--format", "ndjson", "-").out.startswith("1 imported")
    code, _, err = usersvc("users", "import", "-")
    assert code == 2
    assert "Give --format" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "cannot open missing.csv: No such file or directory"),
        (["no\n\x1b[2Jwhere.csv"], r"cannot open no\n\x1b[2Jwhere.csv: No such file or directory"),
        (["--format", "csv", "."], "cannot open .: Is a directory"),
        (["--rejected", "users.csv", "users.csv"], "--rejected would replace the file that is imported"),
        (["--rejected", "not/there", "users.csv"], "cannot open not/there: No such file or directory"),
    ],
)
def test_an_unusable_file_is_reported(usersvc: Commands, arguments: list[str], message: str) -> None:
    file = usersvc.write("users.csv", people(1))
    assert usersvc.fails("users", "import", *arguments) == message
    assert file.read_text() == people(1)
    assert not usersvc.database.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_import_between_batches_and_a_second_run_completes_it(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(user_import, "STORED_AT_ONCE", 3)
    take, before = UserImport.take, signal.getsignal(signal.SIGTERM)

    async def take_and_signal(*arguments: Any) -> Any:
        signal.raise_signal(number)
        return await take(*arguments)

    file = usersvc.write("users.csv", people(8))
    with monkeypatch.context() as patch:
        patch.setattr(UserImport, "take", take_and_signal)
        code, out, err = usersvc("users", "import", file)
    assert (code, out) == (128 + number, "")
    assert err == (
        "usersvc: stopped; 3 imported, 0 already there, 0 rejected; run the command again to import the rest\n"
    )
    assert len(usersvc.stored()) == 3
    assert signal.getsignal(signal.SIGTERM) is before
    assert usersvc("users", "import", file).out == "5 imported, 3 already there, 0 rejected\n"


# --- export ---------------------------------------------------------------------------------------------------------


def test_an_export_with_hashes_is_imported_unchanged(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    usersvc.register("=1+1@example.com", "'b@example.com", '"x y"@example.com')
    before = usersvc.stored()
    code, out, err = usersvc("users", "export", "--with-password-hashes", "users.csv")
    assert (code, out) == (0, "exported 3 to users.csv\n")
    assert "the export has password hashes" in err
    assert stat.S_IMODE(Path("users.csv").stat().st_mode) == 0o600

    monkeypatch.setenv("USERSVC_DATABASE_URL", "sqlite:///new.db")
    usersvc.database = usersvc.folder / "new.db"
    assert usersvc("users", "import", "users.csv") == (0, "3 imported, 0 already there, 0 rejected\n", "")
    assert usersvc.stored() == before


def test_export_to_standard_output_writes_public_data_only(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "BATCH", 2)
    usersvc.register(*(f"jörg{n}@example.com" for n in range(5)))
    code, out, err = usersvc("users", "export")
    assert (code, err) == (0, "")
    assert [json.loads(line)["email"] for line in out.splitlines()] == [f"jörg{n}@example.com" for n in range(5)]
    assert "password" not in out
    as_csv = usersvc("users", "export", "--format", "csv").out
    assert re.fullmatch(
        r"id,email,age,registered_at\s+([0-9a-f-]{36},jörg\d@example.com,30,2026-01-31T[\d:.]+Z\s+){5}", as_csv
    )


def test_a_failed_export_leaves_no_file(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    usersvc.register("alice@example.com")
    before = {*usersvc.folder.iterdir()}

    def encode(*_: object) -> bytes:
        signal.raise_signal(signal.SIGTERM)
        return b"half"

    monkeypatch.setattr(users, "encode", encode)
    assert usersvc("users", "export", "users.csv") == (143, "", "usersvc: stopped\n")
    assert {*usersvc.folder.iterdir()} == before


def test_a_terminal_shows_progress(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    file = usersvc.write("users.csv", people(10))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert re.search(r"importing.*100%", usersvc("users", "import", file).err)
    assert re.search(r"exporting.*\b10\b", usersvc("users", "export", "copy.ndjson").err)
    assert usersvc("users", "export").err == ""


# --- settings -------------------------------------------------------------------------------------------------------


def test_config_check_lists_settings_with_sources_and_without_secrets(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    usersvc.write("token", "hunter2-hunter2\n")
    usersvc.write(".env", "USERSVC_PORT=8081\nUSERSVC_HOST=example.com\n")
    settings = {
        "ADMIN_TOKEN_FILE": "token",
        "HOST": "127.0.0.2",
        "PASSWORD_PEPPER": "hunter2-hunter2-hunter2",
        "SMTP_URL": "smtps://user:hunter2@mail.example.com",
        "MAIL_FROM": "noreply@example.com",
        "REGISTER_RATE": "",
        "NONSENSE": "hunter2",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"USERSVC_{name}", value)
    monkeypatch.delenv("USERSVC_DATABASE_URL")
    code, out, err = usersvc("config", "check")

    assert "hunter2" not in out + err
    assert (code, err) == (0, "usersvc: USERSVC_NONSENSE has no effect in this version\n")
    shown = dict(re.findall(r"^USERSVC_(\w+) +(\S.*)$", out, re.MULTILINE))
    assert (
        shown.items()
        >= {
            "HOST": "127.0.0.2  [environment]",
            "PORT": "8081  [.env]",
            "DATABASE_URL": "sqlite:///usersvc.db  [default]",
            "ADMIN_TOKEN": "(set)  [token]",
            "PASSWORD_PEPPER": "(set)  [environment]",
            "SMTP_URL": "smtps://user:(set)@mail.example.com  [environment]",
            "REGISTER_RATE": "(none)  [environment]",
            "TRUSTED_PROXIES": "(none)  [default]",
        }.items()
    )

    as_json = usersvc("config", "check", "--json").out
    assert "hunter2" not in as_json
    document = json.loads(as_json)
    assert document["settings"]["USERSVC_PORT"] == {"value": "8081", "source": ".env"}
    assert document["without_effect"] == ["USERSVC_NONSENSE"]

    monkeypatch.setenv("USERSVC_PORT", "hunter2")
    message = "usersvc: USERSVC_PORT accepts a whole number from 0 to 65535.\n"
    assert usersvc("config", "check") == (2, "", message)
