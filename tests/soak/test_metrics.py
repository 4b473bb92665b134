"""The metrics that the running service exports, and that Prometheus and Grafana accept them and the alerts."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.api import person, register
from tests.e2e.server import DEADLINE, Service, free_port, run_to_end, running
from usersvc.adapters.memory import InMemoryOutbox
from usersvc.adapters.telemetry.prometheus import PrometheusMetrics

OBSERVABILITY = Path(__file__).resolve().parents[2] / "deploy" / "observability"

Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics(client: httpx.Client) -> Metrics:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(found: Metrics, name: str, **labels: str) -> float:
    """The sum of the samples with these labels."""
    return sum(one for (each, its), one in found.items() if each == name and set(labels.items()) <= set(its))


def test_requests_and_mails_are_counted(tmp_path: Path) -> None:
    # No server listens there: every delivery fails.
    settings = {"USERSVC_SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "USERSVC_MAIL_FROM": "usersvc@example.com"}
    with running(tmp_path, settings) as service, service.client() as client:
        assert value(metrics(client), "usersvc_outbox_pending") == 0
        register(client, email="alice@example.com")
        client.post("/register", json=person(email="alice@example.com"))
        client.get("/users")
        client.head("/users")
        client.get("/users/alice@example.com")
        service.wait_for_output("attempt 1 to welcome")
        deadline = time.monotonic() + DEADLINE
        while not value(found := metrics(client), "usersvc_outbox_deliveries_total", outcome="retried"):
            assert time.monotonic() < deadline

    requests = [
        {"method": "POST", "route": "/register", "status": "201"},
        {"method": "POST", "route": "/register", "status": "409"},
        {"method": "GET", "route": "/users", "status": "200"},
        {"method": "HEAD", "route": "/users", "status": "200"},
        {"method": "GET", "route": "/users/{user_id}", "status": "404"},
    ]
    assert [value(found, "usersvc_http_requests_total", **labels) for labels in requests] == [1] * 5
    assert value(found, "usersvc_http_request_duration_seconds_count", route="/register") == 2
    assert 0 < value(found, "usersvc_http_request_duration_seconds_sum", route="/register") < DEADLINE
    assert value(found, "usersvc_hashing_duration_seconds_count", operation="hash") == 2
    assert value(found, "usersvc_hashing_pending") == 0
    assert value(found, "usersvc_storage_call_duration_seconds_count", operation="add") == 2
    assert value(found, "usersvc_notification_duration_seconds_count") >= 1
    assert value(found, "usersvc_outbox_pending") == 1
    assert value(found, "usersvc_outbox_dead_lettered") == 0
    assert 0 < value(found, "usersvc_outbox_oldest_age_seconds") < 2 * DEADLINE
    assert value(found, "usersvc_build_info") == 1
    assert value(found, "process_resident_memory_bytes") > 2**20


def test_clients_cannot_increase_the_number_of_series(tmp_path: Path) -> None:
    with running(tmp_path) as service, service.client() as client:
        client.get("/users")
        for each in range(40):
            for path in (f"/{each}", f"/users/{each}", f"/problems/{each}"):
                client.get(path)
            client.request("PROPFIND" if each % 2 else "MKCOL", f"/users?{each}")
        found = metrics(client)
        routes = {dict(labels)["route"] for name, labels in found if name == "usersvc_http_requests_total"}
        assert routes == {"(no route)", "/livez", "/users", "/users/{user_id}", "/problems/{code}"}
        assert value(found, "usersvc_http_requests_total", route="(no route)", status="404") == 40
        assert value(found, "usersvc_http_requests_total", method="other", status="405") == 40
        assert len([name for name, _ in found if name == "usersvc_http_requests_total"]) < 10


def test_workers_export_their_sums_even_after_a_worker_has_died(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    settings = {"USERSVC_WORKERS": "2", "USERSVC_PORT": str(free_port()), "USERSVC_BCRYPT_COST": "13"}
    with running(tmp_path, settings | {"TMPDIR": str(folder)}) as service, ThreadPoolExecutor(4) as threads:

        def scrape() -> Metrics:
            # A connection for each request, so that the system distributes them.
            with service.client() as client:
                return metrics(client)

        def send() -> None:
            # Requests that run when the workers die get no response.
            with service.client() as client, suppress(httpx.TransportError):
                client.post("/register", json=person())

        for _ in range(5):
            send()
        for _ in range(5):
            assert value(scrape(), "usersvc_http_requests_total", route="/register", status="201") == 5
        sending = [threads.submit(send) for _ in range(4)]
        deadline = time.monotonic() + DEADLINE
        while value(scrape(), "usersvc_hashing_pending") == 0:
            assert time.monotonic() < deadline
        for worker in service.wait_for_output(r"Started server process \[(\d+)\]", 2):
            os.kill(int(worker), signal.SIGKILL)
        wait(sending)

        service.wait_for_output("Application startup complete", 4)
        found = scrape()
        assert value(found, "usersvc_http_requests_total", route="/register", status="201") >= 5
        assert value(found, "usersvc_hashing_pending") == 0
        assert value(found, "usersvc_build_info") == 1
        assert [*folder.iterdir()]
    assert not [*folder.iterdir()]


def test_a_configured_folder_has_only_metrics_of_this_run(tmp_path: Path) -> None:
    tmp_path.joinpath("metrics").mkdir()
    settings = {"PROMETHEUS_MULTIPROC_DIR": "metrics"}
    for _ in range(2):
        with running(tmp_path, settings) as service, service.client() as client:
            client.get("/users")
            assert value(metrics(client), "usersvc_http_requests_total", route="/users", status="200") == 1
        assert [*tmp_path.joinpath("metrics").iterdir()]


@pytest.mark.parametrize("folder", ["", "nowhere"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_missing_folder_for_metrics_stops_the_start(tmp_path: Path, folder: str, workers: str) -> None:
    settings = {"PROMETHEUS_MULTIPROC_DIR": folder, "USERSVC_WORKERS": workers, "USERSVC_PORT": str(free_port())}
    ended = run_to_end(tmp_path, settings)
    line = "usersvc: PROMETHEUS_MULTIPROC_DIR accepts an existing folder that is writable.\n"
    assert (ended.returncode, ended.stderr) == (2, line)


def test_the_dashboard_is_valid_for_grafana() -> None:
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text("utf-8"))
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(dashboard)
    # Grafana creates it at each import.
    assert "id" not in dashboard
    [source] = dashboard["templating"]["list"]
    assert (source["type"], source["query"], source["name"]) == ("datasource", "prometheus", "datasource")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    occupied: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        # Grafana's grid has 24 columns.
        assert 0 <= x <= x + width <= 24
        area = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        assert not area & occupied
        occupied |= area


async def test_every_metric_of_the_dashboard_and_the_alerts_exists() -> None:
    text = (await PrometheusMetrics().exposition(InMemoryOutbox())).decode()
    exported = {family.name for family in text_string_to_metric_families(text)}
    used = {
        re.sub("_(total|bucket|sum|count)$", "", name)
        for file in ("dashboard.json", "alerts.yaml", "alerts.test.yaml")
        for name in re.findall(r"\busersvc_\w+", (OBSERVABILITY / file).read_text("utf-8"))
    }
    assert len(used) > 8
    assert used <= exported


needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed",
)


@needs_prometheus
@pytest.mark.parametrize("command", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts.test.yaml")])
def test_promtool_accepts_the_alerts(command: tuple[str, ...]) -> None:
    ended = subprocess.run(["promtool", *command], cwd=OBSERVABILITY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@contextmanager
def prometheus(folder: Path, service: Service) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes a service with the project's configuration, only more often."""
    host, target = service.address
    shutil.copy(OBSERVABILITY / "alerts.yaml", folder)
    configuration = (OBSERVABILITY / "prometheus.yaml").read_text("utf-8")
    configuration = configuration.replace("127.0.0.1:8000", f"{host}:{target}").replace("15s", "200ms")
    folder.joinpath("prometheus.yaml").write_text(configuration, "utf-8")
    port = free_port()
    address = f"--web.listen-address=127.0.0.1:{port}"
    command = ("prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data", address)
    with (
        folder.joinpath("prometheus.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client,
    ):
        try:
            yield client
        finally:
            process.terminate()
            process.wait(DEADLINE)


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """The result of a query to Prometheus, as soon as it has data."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        # It refuses connections, or responds with 503, until it has started.
        with suppress(httpx.TransportError):
            response = client.get("/query", params={"query": expression})
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                document = response.json()
                assert document.get("status") == "success", (expression, document)
                result: list[dict[str, Any]] = document["data"]["result"]
                if result:
                    return result
        time.sleep(0.05)  # Prometheus does not report when it has scraped often enough
    raise AssertionError(f"no data for {expression}")


@needs_prometheus
def test_prometheus_scrapes_the_service_and_has_data_for_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 12

    with running(tmp_path) as service, prometheus(tmp_path, service) as client, service.client() as users:
        assert [each["value"][1] for each in query(client, 'up{job="usersvc"} == 1')] == ["1"]
        for _ in range(3):
            register(users)
            users.get("/users")
        [counted] = query(client, 'usersvc_http_requests_total{route="/register", status="201"} == 3')
        assert counted["metric"]["job"] == "usersvc"
        for expression in expressions:
            assert query(client, expression.replace("$__rate_interval", "30s"))
