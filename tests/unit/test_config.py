import io
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItemPerHour, RateLimitItemPerMinute

from tools.extras import main
from usersvc.adapters.bcrypt.hasher import MAX_COST, MIN_COST
from usersvc.adapters.server_url import Security, SmtpServer
from usersvc.config import SECRETS, InvalidSetting, MemoryDatabase, PostgresDatabase, Settings, SqliteDatabase


def read(**settings: str) -> Settings:
    return Settings.from_environment({f"USERSVC_{name.upper()}": value for name, value in settings.items()})


def test_defaults() -> None:
    settings = read()

    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert settings.database == SqliteDatabase(Path("usersvc.db"))
    assert (settings.bcrypt_cost, settings.password_min_length, settings.max_body_bytes) == (12, 8, 16384)
    assert (settings.log_level, settings.log_format, settings.tracing) == ("info", "console", "off")
    assert settings.password_pepper is None
    assert settings.hash_workers >= 1
    assert settings.hash_queue == 64
    assert settings.admin_token is None
    assert settings.register_rate == RateLimitItemPerMinute(60)
    assert settings.trusted_proxies == settings.cors_origins == ()


def test_an_empty_variable_means_the_default() -> None:
    assert read(port="", database_url="", password_pepper="", admin_token="") == read()


def test_everything_can_be_set() -> None:
    settings = read(
        host="::1",
        port="0",
        workers="3",
        database_url="sqlite:////data/users.db",
        bcrypt_cost="4",
        hash_workers="2",
        password_min_length="15",
        password_pepper="a secret of some length",
        admin_token="another secret".replace(" ", "-"),
        hash_queue="0",
        register_rate="5 per 2 hours",
        rate_limit_store="rediss://us%40er:hunter2@redis.example.com:6380/1",
        trusted_proxies="10.0.0.0/8, ::1",
        cors_origins="https://app.example.com, http://localhost:3000,http://[::1]:3000",
        max_connections="7",
        max_body_bytes="2048",
        log_level="WARNING",
        log_format="json",
        tracing="OTLP",
    )

    assert settings == Settings(
        host="::1",
        port=0,
        workers=3,
        database=SqliteDatabase(Path("/data/users.db")),
        bcrypt_cost=4,
        hash_workers=2,
        password_min_length=15,
        password_pepper=b"a secret of some length",
        admin_token="another-secret",
        hash_queue=0,
        register_rate=RateLimitItemPerHour(5, 2),
        rate_limit_store="rediss://us%40er:hunter2@redis.example.com:6380/1",
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("::1")),
        cors_origins=("https://app.example.com", "http://localhost:3000", "http://[::1]:3000"),
        max_connections=7,
        max_body_bytes=2048,
        log_level="warning",
        log_format="json",
        tracing="otlp",
    )


def test_the_database_may_be_memory() -> None:
    assert isinstance(read(database_url="memory://").database, MemoryDatabase)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/database",
        "postgres://user:hunter2@host:5433/database",
        "postgresql:///database?host=/var/run/postgresql",
        "postgresql://user:p%40ss%2Fw%3Ard@one:5433,two,[2001:db8::1]:5434/data%20base?sslmode=verify-full",
        "postgresql://user:hunter2@one,two/database?target_session_attrs=read-write&search_path=usersvc",
    ],
)
def test_the_database_may_be_a_postgresql_server_whose_address_is_a_secret(url: str) -> None:
    database = read(database_url=url).database
    assert database == PostgresDatabase(url)
    assert str(database) == "PostgreSQL"
    assert url not in repr(database)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "80a"),
        ("port", " 80"),
        ("port", "8_000"),
        ("port", "٨٠"),
        ("workers", "0"),
        ("workers", "many"),
        ("bcrypt_cost", "3"),
        ("bcrypt_cost", "17"),
        ("hash_workers", "0"),
        ("password_min_length", "7"),
        ("password_min_length", "65"),
        ("password_pepper", "too short"),
        ("max_body_bytes", "0"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("tracing", "jaeger"),
        ("database_url", "users.db"),
        ("database_url", "sqlite://"),
        ("database_url", "sqlite:///"),
        ("database_url", "sqlite:///:memory:"),
        ("database_url", "sqlite:////"),
        ("database_url", "sqlite:///."),
        ("database_url", "sqlite:///users.db?mode=ro"),
        ("database_url", "mysql://user:hunter2@host/db"),
        ("database_url", "postgresql://user:hunter2@host"),
        ("database_url", "postgresql://user:hunter2@host/"),
        ("database_url", "postgresql://user:hunter2@host/database/table"),
        ("database_url", "postgresql:user:hunter2@host/database"),
        ("database_url", "postgresql://user:hunter2@host:port/database"),
        ("database_url", "postgresql://user:hunter2@host:65536/database"),
        ("database_url", "postgresql://user:hunter2@host:0/database"),
        ("database_url", "postgresql://user:hunter2@one,two:x/database"),
        ("database_url", "postgresql://user:hunter2@[::1/database"),
        ("database_url", "postgresql://user:hunter2[::1]@one,[::1]/database"),
        ("database_url", "postgresql://user:hunter2@with@sign@host/database"),
        ("database_url", "postgresql://user:hunter2@host/data base"),
        ("database_url", "postgresql://user:hunter2@host/data\nbase"),
        ("database_url", "postgresql://user:hunter2\udcff@host/database"),
        ("database_url", "postgresql://user:hunter2@host/database#top"),
        ("database_url", "postgresql://user:hunter2@host/database?sslmode"),
        ("database_url", "postgresql://user:hunter2@host/database?sslmode=perhaps"),
        ("database_url", "postgresql://user:hunter2@host/database?target_session_attrs=standby"),
        ("database_url", "postgresql:///database?user=user&password=hunter2&host=one,two"),
        ("database_pool_size", "0"),
        ("admin_token", "hunter2 "),
        ("admin_token", "hunter2\n"),
        ("admin_token", "hunter2é"),
        ("hash_queue", "-1"),
        ("hash_queue", "10001"),
        ("max_connections", "0"),
        ("register_rate", "60"),
        ("register_rate", "0/minute"),
        ("register_rate", "60/fortnight"),
        ("register_rate", "1/second;60/minute"),
        ("register_rate", " "),
        ("rate_limit_store", "memory://"),
        ("rate_limit_store", "redis://"),
        ("rate_limit_store", "redis://:hunter2@host/name"),
        ("rate_limit_store", "redis://:hunter2@host/0?socket_timeout=9"),
        ("rate_limit_store", "redis://:hunter2@host#top"),
        ("rate_limit_store", "redis://:hunter2@host:port"),
        ("rate_limit_store", "redis://:hunter2@host:0"),
        ("rate_limit_store", "redis://:hunter2@ho st"),
        ("rate_limit_store", "redis://[half:hunter2"),
        ("rate_limit_store", "redis://:hunter2[::1]@host"),
        ("rate_limit_store", "redis://:hunter2@one,two"),
        ("trusted_proxies", "10.0.0.0/8,proxy.example.com"),
        ("trusted_proxies", "10.0.0.1/8"),
        ("trusted_proxies", "*"),
        ("trusted_proxies", "10.0.0.1,"),
        ("cors_origins", "*"),
        ("cors_origins", "null"),
        ("cors_origins", "https://app.example.com/"),
        ("cors_origins", "https://APP.example.com"),
        ("cors_origins", "https://app.example.com:443"),
        ("cors_origins", "https://app.example.com:65536"),
        ("cors_origins", "https://*.example.com"),
        ("cors_origins", "app.example.com"),
        ("cors_origins", "https://user:hunter2@app.example.com"),
        ("smtp_url", "mail.example.com"),
        ("smtp_url", "http://mail.example.com"),
        ("smtp_url", "smtp://"),
        ("smtp_url", "smtp://user@host"),
        ("smtp_url", "smtp://user:hunter2@host/path"),
        ("smtp_url", "smtp://user:hunter2@host:port"),
        ("smtp_url", "smtp://[half:hunter2"),
        ("smtp_url", "smtp://user:hunter2[::1]@host"),
        ("smtp_url", "smtp://user:hunter2@one,two"),
        ("smtp_url", "smtp://user:hunter2@host:0"),
        ("smtp_url", "smtp://user:@host"),
        ("smtp_url", "smtp://:hunter2@host"),
        ("smtp_url", "smtp://user:hunter2@host name"),
        ("smtp_url", "smtp://user:hunter2@ho\nst"),
        ("smtp_url", "smtp://user:hunter2\udcff@host"),
        ("smtp_url", "smtp://user:hunter2@host?tls=no"),
        ("smtp_url", "smtp://user:hunter2@host#top"),
        ("smtp_url", "smtp://user:hunter2@host:65536"),
        ("mail_from", "nobody"),
        ("mail_from", "Service <service@example.com>"),
    ],
)
def test_an_invalid_value_is_refused_by_name_and_not_repeated(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        read(**{name: value})

    told = str(refused.value)
    assert told.startswith(f"USERSVC_{name.upper()} accepts ")
    assert "\n" not in told
    assert "hunter2" not in told


def test_the_range_of_costs_is_the_hashers() -> None:
    assert [read(bcrypt_cost=str(cost)).bcrypt_cost for cost in (MIN_COST, MAX_COST)] == [MIN_COST, MAX_COST]
    for cost in (MIN_COST - 1, MAX_COST + 1):
        with pytest.raises(InvalidSetting):
            read(bcrypt_cost=str(cost))


def test_settings_and_the_composition_root_are_imported_without_extras() -> None:
    program = "import usersvc.bootstrap, sys; print({'asyncpg', 'redis', 'opentelemetry', 'limits'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


def test_memory_requires_one_process() -> None:
    with pytest.raises(InvalidSetting, match="USERSVC_WORKERS accepts 1"):
        read(database_url="memory://", workers="2")


@given(
    st.sampled_from(
        [
            "PORT",
            "WORKERS",
            "BCRYPT_COST",
            "DATABASE_URL",
            "LOG_LEVEL",
            "PASSWORD_PEPPER",
            "MAIL_FROM",
            "REGISTER_RATE",
            "RATE_LIMIT_STORE",
            "CORS_ORIGINS",
        ]
    ),
    st.text(),
)
def test_any_text_is_accepted_or_refused(name: str, text: str) -> None:
    try:
        Settings.from_environment({f"USERSVC_{name}": text})
    except InvalidSetting as refused:
        assert f"USERSVC_{name}" in str(refused)


@given(st.sampled_from(["smtp://", "smtps://u:p@", "smtp+starttls://", ""]), st.text())
def test_any_text_is_a_mail_server_or_refused(start: str, text: str) -> None:
    try:
        settings = read(smtp_url=start + text, mail_from="service@example.com")
    except InvalidSetting as refused:
        assert "USERSVC_SMTP_URL" in str(refused)
    else:
        assert settings.smtp is None or settings.smtp.host


@pytest.mark.parametrize(
    ("host", "token", "is_accepted"),
    [
        ("127.0.0.1", "x", True),
        ("127.8.9.10", "x" * 21, True),
        ("::1", "x" * 21, True),
        ("localhost", "x" * 21, True),
        ("LOCALHOST", "x" * 21, True),
        ("0.0.0.0", "x" * 21, False),
        ("0.0.0.0", "x" * 22, True),
        ("::", "x" * 21, False),
        ("192.0.2.1", "x" * 21, False),
        ("localhost.example.com", "x" * 21, False),
        ("users.example.com", "x" * 21, False),
        ("users.example.com", "x" * 22, True),
    ],
)
def test_a_short_admin_token_is_accepted_on_loopback_addresses_only(host: str, token: str, is_accepted: bool) -> None:
    if is_accepted:
        assert read(host=host, admin_token=token).admin_token == token
    else:
        with pytest.raises(
            InvalidSetting, match=r"^USERSVC_ADMIN_TOKEN accepts .* at least 22 unless USERSVC_HOST is a loop"
        ):
            read(host=host, admin_token=token)


def test_secrets_are_never_shown() -> None:
    assert "sixteen or more!" not in repr(read(password_pepper="sixteen or more!"))
    assert "hunter2" not in repr(read(admin_token="hunter2"))
    assert "hunter2" not in repr(read(rate_limit_store="redis://:hunter2@host"))


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


@pytest.mark.parametrize(
    ("content", "file"), [(b"", "token"), (b"\n", "token"), (b"hunter2", "no such file"), (b"", "\0")]
)
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes, file: str) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(InvalidSetting, match=r"^USERSVC_ADMIN_TOKEN_FILE accepts the path of a file that can be read"):
        read(admin_token_file=str(tmp_path / file))


def test_a_secret_as_variable_and_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2")
    with pytest.raises(
        InvalidSetting, match=r"^USERSVC_ADMIN_TOKEN_FILE accepts a file only when USERSVC_ADMIN_TOKEN is"
    ):
        read(admin_token="hunter2", admin_token_file=str(tmp_path / "token"))


def test_only_secrets_are_read_from_files() -> None:
    assert read(port_file="/etc/hostname").without_effect == ("USERSVC_PORT_FILE",)


def test_an_empty_rate_is_no_limit() -> None:
    assert (read(register_rate="").register_rate, read(register_rate="").without_effect) == (None, ())


@pytest.mark.parametrize(
    ("name", "value", "extra"),
    [
        ("database_url", "postgresql://user:hunter2@host/database", "postgres"),
        ("rate_limit_store", "redis://:hunter2@host", "redis"),
        ("tracing", "otlp", "otel"),
    ],
)
def test_a_setting_that_needs_a_missing_extra_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, extra: str
) -> None:
    monkeypatch.setattr("usersvc.config.find_spec", lambda _: None)
    with pytest.raises(
        InvalidSetting, match=rf"USERSVC_{name.upper()} accepts .* the extra {extra}: make extras\."
    ) as told:
        read(**{name: value})
    assert "hunter2" not in str(told.value)
    assert read().rate_limit_store is None

    # As it is installed by pip.
    monkeypatch.setattr("usersvc.config.__file__", "/site-packages/usersvc/config.py")
    with pytest.raises(InvalidSetting, match=rf"pip install 'usersvc\[{extra}\]'"):
        read(**{name: value})


@pytest.mark.parametrize(
    ("variables", "extras"),
    [
        ({}, ""),
        ({"USERSVC_DATABASE_URL": "sqlite:///users.db", "USERSVC_TRACING": "off"}, ""),
        ({"USERSVC_DATABASE_URL": "postgresql://host/db"}, "postgres"),
        ({"USERSVC_DATABASE_URL_FILE": "url.txt"}, "postgres"),
        ({"USERSVC_RATE_LIMIT_STORE": "redis://host", "USERSVC_TRACING": "otlp"}, "redis otel"),
        ({"USERSVC_PORT": "many", "USERSVC_TRACING": "otlp"}, ""),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_the_extras_that_the_settings_need_are_printed_installed_or_not(
    variables: dict[str, str], extras: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("usersvc.config.find_spec", lambda _: None)
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    Path("url.txt").write_text("postgresql://host/db\n")
    if place == ".env":
        Path(".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    else:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    main()

    assert printed.getvalue() == f"{extras}\n"


def test_the_environment_wins_over_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(
        "USERSVC_PORT=8001\nUSERSVC_PASSWORD_PEPPER='with $DOLLAR and ${BRACES}'\n# done\n", "utf-8-sig"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("USERSVC_PORT", raising=False)
    assert Settings.from_environment().port == 8001
    assert Settings.from_environment().password_pepper == b"with $DOLLAR and ${BRACES}"

    monkeypatch.setenv("USERSVC_PORT", "8002")
    assert Settings.from_environment().port == 8002


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example.com", SmtpServer("mail.example.com", 25)),
        ("smtp://[::1]:2525", SmtpServer("::1", 2525)),
        ("smtps://mail.example.com", SmtpServer("mail.example.com", 465, Security.TLS)),
        (
            "smtp+starttls://us%40er:pass%2Fword@mail.example.com:588/",
            SmtpServer("mail.example.com", 588, Security.STARTTLS, "us@er", "pass/word"),
        ),
    ],
)
def test_a_mail_server_is_named_by_its_url(url: str, server: SmtpServer) -> None:
    settings = read(smtp_url=url, mail_from="service@example.com")
    assert (settings.smtp, settings.mail_from) == (server, "service@example.com")
    assert "pass/word" not in repr(settings)


def test_a_mail_server_needs_a_sender() -> None:
    with pytest.raises(InvalidSetting, match="USERSVC_MAIL_FROM accepts an email address, and is needed"):
        read(smtp_url="smtp://mail.example.com")


@pytest.mark.parametrize("line", ["USERSVC_PASSWORD_PEPPER hunter2hunter2", "USERSVC_PORT", "'unclosed", "=8000"])
def test_a_line_of_the_env_file_that_sets_nothing_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(f"USERSVC_WORKERS=2\n{line}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidSetting, match=r"\.env accepts lines NAME=value in UTF-8; see its line 2"):
        Settings.from_environment()


def test_an_unreadable_env_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidSetting, match=r"^\.env cannot be read: Is a directory\.$"):
        Settings.from_environment()


def test_unknown_variables_are_listed() -> None:
    assert read(password_min_lenght="15", rate_limit_shop="x", port="1", register_rate="").without_effect == (
        "USERSVC_PASSWORD_MIN_LENGHT",
        "USERSVC_RATE_LIMIT_SHOP",
    )


def test_tracing_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(InvalidSetting, match=r"USERSVC_TRACING accepts otlp only with the extra otel: make extras\."):
        read(tracing="otlp")
    assert read(tracing="off") == read()


def test_each_process_hashes_on_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usersvc.config.cores", lambda: 8)
    assert read().hash_workers == 8
    assert read(workers="3").hash_workers == 8
    assert read(workers="3", hash_workers="5").hash_workers == 5
    monkeypatch.setattr("usersvc.config.cores", lambda: 512)
    assert read().hash_workers == 256
