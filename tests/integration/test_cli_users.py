"""The commands that show, remove and move users, and those that look at settings, as a person or a script uses them."""

import asyncio
import errno
import io
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from usersvc import cli
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.adapters.sqlite.archive import SqliteArchive
from usersvc.application import keyset, user_import
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.read_models import UserRecord
from usersvc.cli import users_import
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User

T = TypeVar("T")

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
HASH = "$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
ID = "0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a"
HEAD = "email,age,password_hash\n"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Commands:
    """Runs commands in this process, on a database of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self.folder = folder
        self.database = folder / "users.db"

    def __call__(self, *arguments: str | Path) -> Outcome:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            code = ended.code
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        # Nobody asks for hashes on a terminal but by this option.
        assert "--with-password-hashes" in arguments or HASH not in out + err
        return Outcome(code, out, err)

    def fails(self, *arguments: str | Path) -> str:
        """What a command says that fails, in one line."""
        code, out, err = self(*arguments)
        assert (code, out, err[:9], err.count("\n")) == (1, "", "usersvc: ", 1)
        return err.removeprefix("usersvc: ").rstrip("\n")

    def on_store(self, work: Callable[[SqliteUsers], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            async with SqliteUsers(self.database) as users:
                return await work(users)

        with asyncio.Runner() as runner:
            return runner.run(run())

    def register(self, *emails: str) -> list[User]:
        """Register people, each with a mail that waits and an idempotency key."""
        people = [
            User.register(email=email, password="correct horse battery", age=30).complete(PasswordHash(HASH), at=NOW)
            for email in emails
        ]

        async def work(users: SqliteUsers) -> None:
            for person in people:
                await users.add(person, key=key_of(person.email.typed))

        self.on_store(work)
        return people

    def stored(self) -> list[UserRecord]:
        return self.on_store(lambda users: users.archive.users(after=None, limit=100000))

    def write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.write_text(content, newline="")
        return path


@pytest.fixture
def usersvc(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    for name in os.environ:
        if name.startswith("USERSVC_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USERSVC_DATABASE_URL", "sqlite:///users.db")
    return Commands(capsys, tmp_path)


def key_of(email: str) -> IdempotencyKey:
    return IdempotencyKey.named(ascii(email))


def people(count: int) -> str:
    return HEAD + "".join(f"person{n}@example.com,30,{HASH}\n" for n in range(count))


# --- list, show, delete ---------------------------------------------------------------------------------------------


def test_list_prints_one_line_per_user_and_how_to_continue(usersvc: Commands) -> None:
    alice, bob, carol = usersvc.register("alice@example.com", "bob@example.com", "carol@example.com")
    code, out, err = usersvc("users", "list", "--limit", "2")
    assert (code, out.splitlines()) == (
        0,
        [f"{user.id}\t2026-01-31T09:30:00.000000Z\t30\t{user.email.typed}" for user in (alice, bob)],
    )
    *_, after = err.split()
    assert usersvc("users", "list", "--after", after).out.split("\t")[0] == str(carol.id)
    newest = usersvc("users", "list", "--newest", "--limit", "1")
    assert newest.out.startswith(str(carol.id))


def test_list_json_prints_one_object_per_line(usersvc: Commands) -> None:
    [user] = usersvc.register("jörg@bücher.example")
    code, out, err = usersvc("users", "list", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == [
        {
            "id": str(user.id),
            "email": "jörg@bücher.example",
            "age": 30,
            "registered_at": "2026-01-31T09:30:00.000000Z",
        }
    ]


def test_list_reports_that_there_are_no_users(usersvc: Commands) -> None:
    usersvc.register()
    assert usersvc("users", "list") == (0, "", "no users\n")


@pytest.mark.parametrize("spelling", ["Alice@example.com", "ALICE@EXAMPLE.COM", None])
def test_show_accepts_an_id_and_any_spelling_of_the_address(usersvc: Commands, spelling: str | None) -> None:
    [alice] = usersvc.register("Alice@example.com")
    code, out, err = usersvc("users", "show", spelling or str(alice.id), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["id"] == str(alice.id)
    assert "Alice@example.com" in usersvc("users", "show", spelling or str(alice.id)).out


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
    waiting = usersvc.on_store(lambda users: users.outbox.entries())
    assert [entry.event.user_id for entry in waiting] == [bob.id]
    assert usersvc.on_store(lambda users: users.registered_with(key_of("alice@example.com"), at=NOW)) is None
    assert usersvc.on_store(lambda users: users.registered_with(key_of("bob@example.com"), at=NOW)) is not None


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_delete_asks_for_confirmation(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    [alice] = usersvc.register("alice@example.com")
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    code, out, err = usersvc("users", "delete", str(alice.id))

    assert "alice@example.com" in err
    assert len(usersvc.stored()) == left
    assert (code, out) == ((1, "") if left else (0, f"deleted {alice.id}\n"))
    assert err.endswith("no user was deleted\n") == bool(left)


# --- import ---------------------------------------------------------------------------------------------------------


def test_import_stores_users_with_verifiable_hashes_and_sends_no_mail(usersvc: Commands) -> None:
    old = "$2y$05$abcdefghijklmnopqrstuuJle.iZ0HydI0pt1p.fYQNcC2ygoDkde"
    file = usersvc.write(
        "users.csv", f"{HEAD.strip()},id,registered_at\nA@example.com,41,{old},{ID},2001-02-03T04:05:06Z\n"
    )
    assert usersvc("users", "import", file) == (0, "1 imported, 0 already there, 0 rejected\n", "")

    [record] = usersvc.stored()
    assert (str(record.id), record.email, record.age) == (ID, "A@example.com", 41)
    assert record.registered_at == datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert usersvc.on_store(lambda users: users.outbox.entries()) == []

    async def verifies() -> bool:
        async with BcryptPasswordHasher(cost=4, workers=1) as hasher:
            return await hasher.verify(Password("pässwörd 🔑"), record.password_hash)

    with asyncio.Runner() as runner:
        assert runner.run(verifies())


def test_import_can_be_repeated(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", people(7))
    assert usersvc("users", "import", file).out == "7 imported, 0 already there, 0 rejected\n"
    before = usersvc.stored()
    assert usersvc("users", "import", file) == (0, "0 imported, 7 already there, 0 rejected\n", "")
    assert usersvc.stored() == before


BAD = (
    f"{HEAD}alice@example.com,30,{HASH}\nnobody,17,hunter2\nALICE@example.com,30,{HASH}\nbob@example.com,30,{HASH}\n"
    f"carol@example.com,30,$2b$17${HASH[7:]}\ndora@example.com\n"
)


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_rejected_lines_are_reported_and_written_to_a_file(usersvc: Commands, options: list[str]) -> None:
    file = usersvc.write("users.csv", BAD)
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
    assert out == (
        "2 would be imported, 0 already there, 4 would be rejected\n"
        if options
        else "2 imported, 0 already there, 4 rejected\n"
    )
    written = [json.loads(line) for line in Path("rejected").read_text().splitlines()]
    assert [(each["line"], each["text"]) for each in written] == [
        (number, BAD.splitlines()[number - 1]) for number in (3, 4, 6, 7)
    ]
    assert [reason["code"] for reason in written[0]["reasons"]] == ["invalid-email", "out-of-range", "unknown-hash"]
    assert stat.S_IMODE(Path("rejected").stat().st_mode) == 0o600


@pytest.mark.parametrize("newest", [False, True])
def test_a_long_list_is_read_in_pages(usersvc: Commands, monkeypatch: pytest.MonkeyPatch, newest: bool) -> None:
    monkeypatch.setattr(keyset, "BATCH", 2)
    people = usersvc.register(*(f"{name}@example.com" for name in "abcde"))
    expected = [str(person.id) for person in people][:: -1 if newest else 1]
    order = ["--newest"] if newest else []
    for limit in range(1, 7):
        code, out, err = usersvc("users", "list", "--limit", str(limit), *order)
        assert (code, [line.partition("\t")[0] for line in out.splitlines()]) == (0, expected[:limit])
        if limit < 5:
            rest = usersvc("users", "list", "--after", err.split()[-1], *order).out
            assert [line.partition("\t")[0] for line in rest.splitlines()] == expected[limit:]
        else:
            assert err == ""


def test_unclosed_quotation_marks_stop_the_import_after_the_lines_before(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", f'{people(3)}a@example.com,30,"{HASH}\n{people(700)}')
    assert usersvc.fails("users", "import", file) == (
        "lines 5 to 706 are malformed CSV (unexpected end of data); nothing was read from line 5 on; "
        "3 imported, 0 already there, 0 rejected"
    )
    assert len(usersvc.stored()) == 3


def test_a_dry_run_compares_with_stored_users_and_stores_nothing(usersvc: Commands) -> None:
    usersvc.register("alice@example.com")
    before = usersvc.stored()
    file = usersvc.write("users.csv", f"{HEAD}Alice@example.com,30,{HASH}\nbob@example.com,30,{HASH}\n")
    code, out, err = usersvc("users", "import", "--dry-run", file)
    assert (code, err) == (3, "line 2: email email-taken\n")
    assert out == "1 would be imported, 0 already there, 1 would be rejected\n"
    assert usersvc.stored() == before


def test_a_dry_run_creates_no_database(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", people(3))
    assert usersvc("users", "import", "--dry-run", file).out.startswith("3 would be imported")
    assert [*usersvc.folder.iterdir()] == [file]


def test_only_the_first_rejections_are_printed(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", HEAD + f"nobody,30,{HASH}\n" * 25)
    code, _, err = usersvc("users", "import", file)
    assert code == 3
    assert err.splitlines()[9:] == ["line 11: email invalid-email", "and 15 more; --rejected FILE writes all of them"]


def test_unknown_columns_are_refused_before_anything_is_stored(usersvc: Commands) -> None:
    file = usersvc.write("users.csv", f"name,{HEAD}Al,alice@example.com,30,{HASH}\n")
    assert usersvc.fails("users", "import", file) == ("unknown columns: 'name'; see --ignore-unknown")
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
    ("arguments", "told"),
    [
        (["nowhere.csv"], "cannot read nowhere.csv: No such file or directory"),
        (["--rejected", "users.csv", "users.csv"], "--rejected would replace the file that is imported"),
        (["--rejected", "no/where", "users.csv"], "cannot write no/where: No such file or directory"),
    ],
)
def test_an_unusable_file_is_reported(usersvc: Commands, arguments: list[str], told: str) -> None:
    usersvc.write("users.csv", people(1))
    assert usersvc.fails("users", "import", *arguments) == told
    assert Path("users.csv").read_text() == people(1)
    assert not usersvc.database.exists()


def test_export_works_if_users_cannot_be_counted_in_time(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    async def count(_: SqliteArchive) -> int:
        raise StorageUnavailable("PostgreSQL: QueryCanceledError (57014)")

    usersvc.register("alice@example.com", "bob@example.com")
    monkeypatch.setattr(SqliteArchive, "count", count)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = usersvc("users", "export", "users.csv")
    assert (code, out) == (0, "exported 2 to users.csv\n")
    # A bar of no known length, and how far it is.
    assert re.search(r"ing {2}\[[-#]+\] {2}2\b", err)


def test_an_unreadable_file_is_reported_like_a_missing_one(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    readable = Path.open

    def refuse(path: Path, *how: Any, **otherwise: Any) -> Any:
        if path.name == "users.csv":
            raise PermissionError(errno.EACCES, "Permission denied")
        return readable(path, *how, **otherwise)

    usersvc.write("users.csv", people(1))
    # For root, everything is readable.
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(Path, "open", refuse)
    assert usersvc.fails("users", "import", "users.csv") == "cannot read users.csv: Permission denied"
    assert usersvc.fails("users", "export", "users.csv") == "users.csv exists already"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_import_between_batches_and_a_second_run_completes_it(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(user_import, "STORED_AT_ONCE", 3)
    taken, before = users_import._import_batch, signal.getsignal(signal.SIGTERM)

    async def taken_and_interrupted(*arguments: Any) -> Any:
        # While a batch is stored.
        signal.raise_signal(number)
        return await taken(*arguments)

    file = usersvc.write("users.csv", people(8))
    with monkeypatch.context() as patch:
        patch.setattr(users_import, "_import_batch", taken_and_interrupted)
        code, out, err = usersvc("users", "import", file)
    assert (code, out) == (128 + number, "")
    assert err == (
        "usersvc: stopped; 3 imported, 0 already there, 0 rejected; run the command again to import the rest\n"
    )
    assert len(usersvc.stored()) == 3
    assert signal.getsignal(signal.SIGTERM) is before
    assert usersvc("users", "import", file).out == "5 imported, 3 already there, 0 rejected\n"


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_an_export_with_hashes_is_imported_unchanged(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    usersvc.register("=1+1@example.com", "+a@example.com", "'b@example.com", "'=c@example.com", '"x y"@example.com')
    before = usersvc.stored()
    code, out, err = usersvc("users", "export", "--with-password-hashes", f"users.{form}")
    assert (code, out) == (0, f"exported 5 to users.{form}\n")
    assert "the export has password hashes" in err
    assert stat.S_IMODE(Path(f"users.{form}").stat().st_mode) == 0o600

    monkeypatch.setenv("USERSVC_DATABASE_URL", "sqlite:///elsewhere.db")
    usersvc.database = usersvc.folder / "elsewhere.db"
    assert usersvc("users", "import", f"users.{form}") == (0, "5 imported, 0 already there, 0 rejected\n", "")
    assert usersvc.stored() == before


def test_export_to_standard_output_writes_public_data_only(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "BATCH", 2)
    usersvc.register(*(f"jörg{n}@example.com" for n in range(5)))
    code, out, err = usersvc("users", "export")
    assert (code, err) == (0, "")
    assert [json.loads(line)["email"] for line in out.splitlines()] == [f"jörg{n}@example.com" for n in range(5)]
    assert set(json.loads(out.splitlines()[0])) == {"id", "email", "age", "registered_at"}
    assert usersvc("users", "export", "--format", "csv").out.splitlines()[0] == "id,email,age,registered_at"


def test_export_does_not_replace_a_file(usersvc: Commands) -> None:
    usersvc.register("alice@example.com")
    precious = usersvc.write("precious.csv", "do not lose me")
    assert usersvc.fails("users", "export", precious) == f"{precious} exists already"
    assert precious.read_text() == "do not lose me"


def test_a_failed_export_leaves_no_file(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "BATCH", 2)
    usersvc.register(*(f"user{n}@example.com" for n in range(5)))
    before = {*usersvc.folder.iterdir()}

    def interrupted(*_: object) -> bytes:
        signal.raise_signal(signal.SIGTERM)
        return b"half"

    monkeypatch.setattr("usersvc.cli.writer.Writer.body", interrupted)
    assert usersvc("users", "export", "users.csv") == (143, "", "usersvc: stopped\n")
    assert {*usersvc.folder.iterdir()} == before
    assert usersvc("users", "export", "no/where.csv").code == 1


# --- whichever store ------------------------------------------------------------------------------------------------

ON_A_STORE = [
    ["users", "list"],
    ["users", "show", ID],
    ["users", "delete", "--yes", ID],
    ["users", "export"],
    ["users", "export", "users.csv"],
]


@pytest.mark.parametrize("arguments", ON_A_STORE)
def test_a_missing_database_is_reported_and_not_created(usersvc: Commands, arguments: list[str]) -> None:
    assert usersvc.fails(*arguments) == f"no database at {usersvc.database}"
    assert [*usersvc.folder.iterdir()] == []


@pytest.mark.parametrize("arguments", [*ON_A_STORE, ["users", "import", "people.csv"]])
def test_commands_refuse_a_database_in_memory(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    usersvc.write("people.csv", people(1))
    monkeypatch.setenv("USERSVC_DATABASE_URL", "memory://")
    assert usersvc.fails(*arguments) == ("USERSVC_DATABASE_URL is memory://, which only the service itself can access")


@pytest.mark.parametrize("arguments", [*ON_A_STORE, ["users", "import", "people.csv"]])
def test_a_file_that_is_not_a_database_is_reported(usersvc: Commands, arguments: list[str]) -> None:
    usersvc.write("people.csv", people(1))
    usersvc.database.write_bytes(b"this is no database" * 100)
    assert "file is not a database" in usersvc.fails(*arguments)


def test_outbox_list_json_prints_one_object_per_line(usersvc: Commands) -> None:
    [alice] = usersvc.register("alice@example.com")
    [line] = usersvc("outbox", "list", "--json").out.splitlines()
    assert json.loads(line)["user_id"] == str(alice.id)


# --- settings -------------------------------------------------------------------------------------------------------


def test_check_names_the_file_of_a_secret(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    usersvc.write("token", "hunter2-hunter2\n")
    usersvc.write("mail", "smtps://user:hunter2@mail.example.com\n")
    monkeypatch.setenv("USERSVC_ADMIN_TOKEN_FILE", "token")
    usersvc.write(".env", "USERSVC_SMTP_URL_FILE=mail\nUSERSVC_MAIL_FROM=noreply@example.com\n")
    code, out, err = usersvc("config", "check")

    assert (code, err) == (0, "")
    assert "hunter2" not in out
    told = {words[0]: " ".join(words[1:]) for words in map(str.split, out.splitlines())}
    assert told["USERSVC_ADMIN_TOKEN"] == "(set) [token]"
    assert told["USERSVC_SMTP_URL"] == "(set) [mail]"


def test_check_lists_settings_with_sources_and_without_secrets(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    usersvc.write(".env", "USERSVC_PORT=8081\nUSERSVC_ADMIN_TOKEN=hunter2-hunter2-hunter2\nUSERSVC_HOST=example.com\n")
    monkeypatch.setenv("USERSVC_HOST", "127.0.0.2")
    monkeypatch.setenv("USERSVC_PASSWORD_PEPPER", "hunter2-hunter2-hunter2")
    monkeypatch.setenv("USERSVC_SMTP_URL", "smtps://user:hunter2@mail.example.com")
    monkeypatch.setenv("USERSVC_MAIL_FROM", "noreply@example.com")
    monkeypatch.setenv("USERSVC_REGISTER_RATE", "")
    monkeypatch.setenv("USERSVC_NONSENSE", "hunter2")
    code, out, err = usersvc("config", "check")

    assert (code, err) == (0, "usersvc: USERSVC_NONSENSE has no effect in this version\n")
    assert "hunter2" not in out
    told = {words[0]: " ".join(words[1:]) for words in map(str.split, out.splitlines())}
    assert told["USERSVC_HOST"] == "127.0.0.2 [environment]"
    assert told["USERSVC_PORT"] == "8081 [.env]"
    assert told["USERSVC_WORKERS"] == "1 [default]"
    assert told["USERSVC_ADMIN_TOKEN"] == "(set) [.env]"
    assert told["USERSVC_PASSWORD_PEPPER"] == "(set) [environment]"
    assert told["USERSVC_SMTP_URL"] == "smtps://user:(set)@mail.example.com [environment]"
    assert told["USERSVC_REGISTER_RATE"] == "(none) [environment]"
    assert told["USERSVC_TRUSTED_PROXIES"] == "(none) [default]"

    document = json.loads(usersvc("config", "check", "--json").out)
    assert document["settings"]["USERSVC_PORT"] == {"value": "8081", "source": ".env"}
    assert document["without_effect"] == ["USERSVC_NONSENSE"]
    assert "hunter2" not in json.dumps(document)


def test_a_listed_default_can_be_set(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERSVC_DATABASE_URL")
    document = json.loads(usersvc("config", "check", "--json").out)
    assert document["settings"]["USERSVC_DATABASE_URL"]["value"] == "sqlite:///usersvc.db"
    for name, told in document["settings"].items():
        if told["value"] is not None:
            monkeypatch.setenv(name, told["value"])
    again = json.loads(usersvc("config", "check", "--json").out)
    assert {name: told["value"] for name, told in again["settings"].items()} == {
        name: told["value"] for name, told in document["settings"].items()
    }


def test_check_exits_with_2_for_an_invalid_setting(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERSVC_ADMIN_TOKEN", "hunter 2")
    code, out, err = usersvc("config", "check")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("usersvc: USERSVC_ADMIN_TOKEN accepts ")
    assert "hunter" not in err


# --- help, and completion -------------------------------------------------------------------------------------------

EVERY_COMMAND = [
    [],
    ["serve"],
    ["users"],
    *(["users", name] for name in ("list", "show", "delete", "import", "export")),
    ["outbox"],
    *(["outbox", name] for name in ("list", "show", "retry")),
    ["db"],
    ["db", "backup"],
    ["db", "check"],
    ["config"],
    ["config", "check"],
]


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_command_has_help(usersvc: Commands, command: list[str]) -> None:
    long, short = usersvc(*command, "--help"), usersvc(*command, "-h")
    assert long == short
    assert (long.code, long.err) == (0, "")
    assert long.out.startswith("Usage: usersvc")
    assert "\\b" not in long.out
    # Examples stand on lines of their own.
    if "Example" in long.out:
        assert re.search(r"^ +Examples?:\n +\S", long.out, re.MULTILINE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_a_shell(usersvc: Commands, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_USERSVC_COMPLETE", f"{shell}_source")
    code, out, _ = usersvc()
    assert code == 0
    assert "_USERSVC_COMPLETE" in out


def test_command_lines_are_completed(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_USERSVC_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "usersvc users ex")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert usersvc().out == "plain,export\n"
