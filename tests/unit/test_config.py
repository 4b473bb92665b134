import os
import subprocess
import sys
from contextlib import nullcontext
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from limits import RateLimitItemPerHour

from tools.extras import main
from usersvc.adapters.bcrypt.hasher import MAX_COST, MIN_COST
from usersvc.adapters.server_url import Security, SmtpServer
from usersvc.config import SECRETS, VARIABLES, InvalidSetting, Settings, cores
from usersvc.setting_parsers import PostgresDatabase, SqliteDatabase


def read(**settings: str) -> Settings:
    return Settings.from_environment({f"USERSVC_{name.upper()}": value for name, value in settings.items()})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_empty_variable_means_the_default() -> None:
    assert read(port="", database_url="", password_pepper="", admin_token="", trusted_proxies="") == read()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "::1", "::1"),
        ("port", "0", 0),
        ("workers", "3", 3),
        ("database_url", "sqlite:////data/users.db", SqliteDatabase(Path("/data/users.db"))),
        ("bcrypt_cost", "4", 4),
        ("hash_workers", "2", 2),
        ("hash_queue", "0", 0),
        ("password_min_length", "15", 15),
        ("password_pepper", "hunter2 hunter2 hunter2", b"hunter2 hunter2 hunter2"),
        ("admin_token", "hunter2-hunter2", "hunter2-hunter2"),
        ("register_rate", "5 per 2 hours", RateLimitItemPerHour(5, 2)),
        ("register_rate", "", None),
        ("rate_limit_store", "rediss://us%40er:hunter2@host:6380/1", "rediss://us%40er:hunter2@host:6380/1"),
        ("trusted_proxies", "10.0.0.0/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("cors_origins", "https://a.example, http://[::1]:3000", ("https://a.example", "http://[::1]:3000")),
        ("max_connections", "7", 7),
        ("max_body_bytes", "2048", 2048),
        ("log_level", "WARNING", "warning"),
        ("log_format", "json", "json"),
        ("tracing", "OTLP", "otlp"),
        ("smtp_url", "smtp://mail.example.com", SmtpServer("mail.example.com", 25)),
        ("smtp_url", "smtp://[::1]:2525", SmtpServer("::1", 2525)),
        ("smtp_url", "smtps://mail.example.com", SmtpServer("mail.example.com", 465, Security.TLS)),
        (
            "smtp_url",
            "smtp+starttls://us%40er:hunter2%2F@mail.example.com:588/",
            SmtpServer("mail.example.com", 588, Security.STARTTLS, "us@er", "hunter2/"),
        ),
    ],
)
def test_a_value_is_parsed_and_a_secret_is_not_displayed(name: str, text: str, value: object) -> None:
    settings = read(**{"mail_from": "service@example.com", name: text})
    assert getattr(settings, VARIABLES[f"USERSVC_{name.upper()}"].name) == value
    assert settings.without_effect == ()
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///database?host=/var/run/postgresql",
        "postgresql://user:p%40ss%2Fw%3Ard@one:5433,two,[2001:db8::1]:5434/data%20base?sslmode=verify-full",
        "postgres://user:hunter2@one,two/database?target_session_attrs=read-write&search_path=usersvc",
    ],
)
def test_the_url_of_a_postgresql_server_is_a_secret(url: str) -> None:
    database = read(database_url=url).database
    assert database == PostgresDatabase(url)
    assert str(database) == "PostgreSQL"
    assert url not in repr(database)


# What is malformed in any URL is tested with usersvc.adapters.server_url.
INVALID = {
    "port": ["65536", "-1", "80a", " 80", "8_000", "٨٠"],
    "workers": ["0", "many"],
    "bcrypt_cost": ["3", "17"],
    "hash_workers": ["0"],
    "hash_queue": ["-1", "10001"],
    "password_min_length": ["7", "65"],
    "password_pepper": ["too short"],
    "max_body_bytes": ["0"],
    "max_connections": ["0"],
    "log_level": ["loud"],
    "log_format": ["xml"],
    "tracing": ["jaeger"],
    "database_pool_size": ["0"],
    "database_url": [
        "users.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///users.db?mode=ro",
        "sqlite:///users\0.db",
        "mysql://user:hunter2@host/db",
        "postgresql://user:hunter2@host/",
        "postgresql://user:hunter2@host/database/table",
        "postgresql:user:hunter2@host/database",
        "postgresql://user:hunter2@host:port/database",
        "postgresql://user:hunter2\udcff@host/database",
        "postgresql://user:hunter2@host/database?sslmode=perhaps",
        "postgresql://user:hunter2@host/database?target_session_attrs=standby",
        "postgresql:///database?user=user&password=hunter2&host=one,two",
    ],
    "admin_token": ["hunter2 ", "hunter2\n", "hunter2é"],
    "register_rate": ["60", "0/minute", "60/fortnight", "1/second;60/minute", " "],
    "rate_limit_store": [
        "memory://",
        "redis://",
        "redis://:hunter2@host/name",
        "redis://:hunter2@host/0?socket_timeout=9",
        "redis://:hunter2@host:port",
        "redis://:hunter2@one,two",
    ],
    "trusted_proxies": ["10.0.0.0/8,proxy.example.com", "10.0.0.1/8", "*", "10.0.0.1,"],
    "cors_origins": [
        "*",
        "https://app.example.com/",
        "https://APP.example.com",
        "https://app.example.com:443",
        "https://app.example.com:65536",
        "https://user:hunter2@app.example.com",
    ],
    "smtp_url": [
        "http://mail.example.com",
        "smtp://",
        "smtp://user@host",
        "smtp://user:@host",
        "smtp://:hunter2@host",
        "smtp://user:hunter2@host/path",
        "smtp://user:hunter2@one,two",
        "smtp://user:hunter2@host?tls=no",
    ],
    "mail_from": ["nobody", "Service <service@example.com>"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INVALID.items() for value in values])
def test_an_invalid_value_is_refused_by_name_and_not_repeated(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        read(**{name: value})

    message = str(refused.value)
    assert message.startswith(f"USERSVC_{name.upper()} accepts ")
    assert "\n" not in message
    assert "hunter2" not in message


def test_the_range_of_costs_is_the_hashers() -> None:
    with pytest.raises(InvalidSetting, match=rf"a whole number from {MIN_COST} to {MAX_COST}\."):
        read(bcrypt_cost="0")


def test_settings_and_the_composition_root_are_imported_without_extras() -> None:
    program = "import usersvc.bootstrap, sys; print({'asyncpg', 'redis', 'opentelemetry', 'limits'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="USERSVC_WORKERS accepts 1"):
        read(database_url="memory://", workers="2")
    with pytest.raises(InvalidSetting, match="USERSVC_MAIL_FROM accepts an email address, and is needed"):
        read(smtp_url="smtp://host")


@given(
    st.sampled_from(sorted(VARIABLES)),
    st.sampled_from(["", "smtp://", "smtps://u:p@", "smtp+starttls://", "redis://", "postgresql://"]),
    st.text(),
)
@example("USERSVC_PORT", "", "1" * 5000)
def test_any_text_is_accepted_or_refused(name: str, start: str, text: str) -> None:
    try:
        settings = Settings.from_environment({"USERSVC_MAIL_FROM": "service@example.com", name: start + text})
    except InvalidSetting as refused:
        assert name in str(refused)
    else:
        assert settings.smtp is None or settings.smtp.host


@pytest.mark.parametrize("host", ["127.8.9.10", "::1", "LOCALHOST", "0.0.0.0", "::", "localhost.example.com"])
def test_a_short_admin_token_is_accepted_on_loopback_addresses_only(host: str) -> None:
    assert read(host=host, admin_token="x" * 22).admin_token == "x" * 22
    is_loopback = host in {"127.8.9.10", "::1", "LOCALHOST"}
    message = r"^USERSVC_ADMIN_TOKEN accepts .* at least 22 unless USERSVC_HOST is a loop"
    with nullcontext() if is_loopback else pytest.raises(InvalidSetting, match=message):
        read(host=host, admin_token="x" * 21)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_be_in_a_file(tmp_path: Path, end: str) -> None:
    secrets = {
        "database_url": "sqlite:////data/users.db",
        "password_pepper": "a secret of some length ",
        "admin_token": "hunter2",
        "rate_limit_store": "redis://:hunter2@host",
        "smtp_url": "smtps://user:hunter2@host",
    }
    assert {f"USERSVC_{name.upper()}" for name in secrets} == set(SECRETS)
    for name, secret in secrets.items():
        (tmp_path / name).write_bytes(f"{secret}{end}".encode())
    files = {f"{name}_file": str(tmp_path / name) for name in secrets}

    settings = read(mail_from="service@example.com", **files)

    assert settings == read(mail_from="service@example.com", **secrets)
    assert settings.without_effect == ()


@pytest.mark.parametrize(("content", "file"), [(b"\n", "token"), (b"hunter2", "no such file"), (b"", "\0")])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes, file: str) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(InvalidSetting, match=r"^USERSVC_ADMIN_TOKEN_FILE accepts the path of a file that can be read"):
        read(admin_token_file=str(tmp_path / file))


def test_a_setting_is_read_from_a_file_only_if_it_is_a_secret_without_a_variable() -> None:
    assert read(port_file="/etc/hostname").without_effect == ("USERSVC_PORT_FILE",)
    with pytest.raises(InvalidSetting, match=r"^USERSVC_ADMIN_TOKEN_FILE accepts a file only when USERSVC_ADMIN_TOKEN"):
        read(admin_token="hunter2", admin_token_file="/etc/hostname")


@pytest.mark.parametrize(
    ("name", "value", "extra", "missing"),
    [
        ("database_url", "postgresql://user:hunter2@host/database", "postgres", "asyncpg"),
        ("rate_limit_store", "redis://:hunter2@host", "redis", "redis"),
        ("tracing", "otlp", "otel", "opentelemetry.exporter.otlp.proto.http"),
        ("tracing", "otlp", "otel", "opentelemetry.exporter.otlp.proto"),
    ],
)
def test_a_setting_that_needs_a_missing_extra_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, extra: str, missing: str
) -> None:
    for loaded in [*sys.modules]:
        # An earlier test may have imported it.
        if loaded.startswith(f"{missing}."):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        InvalidSetting, match=rf"USERSVC_{name.upper()} accepts .* the extra {extra}: pip install 'usersvc\[{extra}\]'"
    ) as refused:
        read(**{name: value})
    assert "hunter2" not in str(refused.value)
    assert read().rate_limit_store is None


@pytest.mark.parametrize(
    ("variables", "extras"),
    [
        ({}, ""),
        ({"USERSVC_DATABASE_URL_FILE": "url.txt"}, "postgres"),
        ({"USERSVC_RATE_LIMIT_STORE": "redis://host", "USERSVC_TRACING": "otlp"}, "redis otel"),
        ({"USERSVC_PORT": "many", "USERSVC_TRACING": "otlp"}, ""),
    ],
)
@pytest.mark.usefixtures("folder")
def test_needed_extras_are_printed_whether_or_not_they_are_installed(
    variables: dict[str, str], extras: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("usersvc.config.find_spec", lambda _: None)
    Path("url.txt").write_text("postgresql://host/db\n")
    Path(".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    main()
    assert capsys.readouterr().out == f"{extras}\n"


def test_the_environment_wins_over_the_env_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "USERSVC_PORT=8001\nUSERSVC_PASSWORD_PEPPER='with $DOLLAR and ${BRACES}'\n# done\n"
    (folder / ".env").write_text(text, "utf-8-sig")
    monkeypatch.delenv("USERSVC_PORT", raising=False)
    assert Settings.from_environment().port == 8001
    assert Settings.from_environment().password_pepper == b"with $DOLLAR and ${BRACES}"

    monkeypatch.setenv("USERSVC_PORT", "8002")
    assert Settings.from_environment().port == 8002


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            (f"USERSVC_WORKERS=2\n{line}\n".encode(), r"lines NAME=value; see its line 2")
            for line in ("USERSVC_PASSWORD_PEPPER hunter2hunter2", "USERSVC_PORT", "'unclosed", "=8000")
        ),
        (b"USERSVC_PORT=\xff", r"a file in UTF-8 that can be read"),
        (None, r"a file in UTF-8 that can be read"),
    ],
)
def test_a_malformed_or_unreadable_env_file_is_refused(folder: Path, content: bytes | None, message: str) -> None:
    file = folder / ".env"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(InvalidSetting, match=rf"^\.env accepts {message}\.$"):
        Settings.from_environment()


def test_unknown_variables_are_listed() -> None:
    assert read(password_min_lenght="15", rate_limit_shop="x", port="1").without_effect == (
        "USERSVC_PASSWORD_MIN_LENGHT",
        "USERSVC_RATE_LIMIT_SHOP",
    )


def test_a_process_hashes_on_at_most_256_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(workers="3").hash_workers == cores()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(512))
    assert cores() == 256
