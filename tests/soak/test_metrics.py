"""What `/metrics` tells, and that Prometheus can make something of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.api import person, register
from tests.e2e.server import DEADLINE, Service, free_port, run_to_end, running

OBSERVABILITY = Path(__file__).resolve().parents[2] / "deploy" / "observability"

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def figures(client: httpx.Client) -> Figures:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def figure(found: Figures, name: str, **labels: str) -> float:
    """The sum of those that have these labels."""
    return sum(value for (each, its), value in found.items() if each == name and set(labels.items()) <= set(its))


def test_what_happens_is_counted(tmp_path: Path) -> None:
    with running(tmp_path) as service, service.client() as client:
        register(client, email="alice@example.com")
        client.post("/register", json=person(email="alice@example.com"))
        client.get("/users")
        client.head("/users")
        client.get("/users/alice@example.com")
        service.wait_for_output("sent a welcome mail")
        found = figures(client)

        requests = "usersvc_http_requests_total"
        assert figure(found, requests, method="POST", route="/register", status="201") == 1
        assert figure(found, requests, method="POST", route="/register", status="409") == 1
        assert figure(found, requests, method="GET", route="/users", status="200") == 1
        assert figure(found, requests, method="HEAD", route="/users", status="200") == 1
        assert figure(found, requests, method="GET", route="/users/{user_id}", status="404") == 1
        seconds = "usersvc_http_request_duration_seconds"
        assert figure(found, f"{seconds}_count", route="/register") == 2
        assert 0 < figure(found, f"{seconds}_sum", route="/register") < DEADLINE
        assert figure(found, "usersvc_hashing_duration_seconds_count", operation="hash") == 2
        assert figure(found, "usersvc_hashing_pending") == 0
        assert figure(found, "usersvc_storage_call_duration_seconds_count", operation="add") == 2
        assert figure(found, "usersvc_build_info") == 1
        assert figure(found, "process_resident_memory_bytes") > 2**20


def test_the_outbox_is_told_as_it_is(tmp_path: Path) -> None:
    # Nobody listens there: every delivery fails.
    settings = {"USERSVC_SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "USERSVC_MAIL_FROM": "usersvc@example.com"}
    with running(tmp_path, settings) as service, service.client() as client:
        assert figure(figures(client), "usersvc_outbox_pending") == 0
        register(client)
        service.wait_for_output("attempt 1 to welcome")

        deadline = time.monotonic() + DEADLINE
        while not figure(found := figures(client), "usersvc_outbox_deliveries_total", outcome="retried"):
            assert time.monotonic() < deadline
        assert figure(found, "usersvc_outbox_pending") == 1
        assert figure(found, "usersvc_outbox_dead_lettered") == 0
        assert 0 < figure(found, "usersvc_outbox_oldest_age_seconds") < 2 * DEADLINE


def test_refusals_for_want_of_room_are_counted(tmp_path: Path) -> None:
    settings = {"USERSVC_BCRYPT_COST": "12", "USERSVC_HASH_WORKERS": "1", "USERSVC_HASH_QUEUE": "0"}
    with running(tmp_path, settings) as service, service.client() as client:
        statuses: list[int] = []

        def flood() -> None:
            with service.client() as other:
                statuses.extend(other.post("/register", json=person()).status_code for _ in range(5))

        floods = [Thread(target=flood) for _ in range(3)]
        for each in floods:
            each.start()
        for each in floods:
            each.join()
        assert set(statuses) == {201, 503}
        assert figure(figures(client), "usersvc_hashing_refused_total") == statuses.count(503)


def test_there_are_never_many_series_whatever_clients_send(tmp_path: Path) -> None:
    with running(tmp_path) as service, service.client() as client:
        client.get("/users")
        for each in range(200):
            client.get(f"/{each}")
            client.get(f"/users/{each}")
            client.get(f"/problems/{each}")
            client.request("PROPFIND" if each % 2 else "MKCOL", f"/users?{each}")
        found = figures(client)
        assert {dict(labels)["route"] for name, labels in found if name == "usersvc_http_requests_total"} == {
            "(no route)",
            "/livez",
            "/users",
            "/users/{user_id}",
            "/problems/{code}",
        }
        assert figure(found, "usersvc_http_requests_total", route="(no route)", status="404") == 200
        assert figure(found, "usersvc_http_requests_total", method="other", status="405") == 200
        assert len([name for name, _ in found if name == "usersvc_http_requests_total"]) < 10


def test_the_figures_need_the_token_if_there_is_one(tmp_path: Path) -> None:
    with running(tmp_path, {"USERSVC_ADMIN_TOKEN": "open-sesame-open-sesame"}) as service, service.client() as client:
        refused = client.get("/metrics")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        client.headers["Authorization"] = "Bearer open-sesame-open-sesame"
        assert figure(figures(client), "usersvc_http_requests_total", route="/metrics", status="401") == 1


def test_several_workers_are_told_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    settings = {"USERSVC_WORKERS": "2", "USERSVC_PORT": str(free_port()), "TMPDIR": str(folder)}
    with running(tmp_path, settings) as service:
        for _ in range(20):
            # A connection each, so that the system spreads them.
            with service.client() as client:
                register(client)
        for _ in range(5):
            with service.client() as client:
                found = figures(client)
                assert figure(found, "usersvc_http_requests_total", route="/register", status="201") == 20
                assert figure(found, "usersvc_hashing_pending") == 0
                assert figure(found, "usersvc_build_info") == 1
        assert [*folder.iterdir()]
    assert not [*folder.iterdir()]


def test_workers_that_die_are_replaced_and_what_they_counted_stays(tmp_path: Path) -> None:
    settings = {"USERSVC_WORKERS": "2", "USERSVC_PORT": str(free_port()), "USERSVC_BCRYPT_COST": "13"}
    with running(tmp_path, settings) as service:

        def now() -> Figures:
            with service.client() as client:
                return figures(client)

        def ask() -> None:
            # Those who are in hand when the workers die get no answer.
            with service.client() as client, suppress(httpx.TransportError):
                client.post("/register", json=person(), timeout=DEADLINE)

        ask()
        asking = [Thread(target=ask) for _ in range(4)]
        for each in asking:
            each.start()
        deadline = time.monotonic() + DEADLINE
        while figure(now(), "usersvc_hashing_pending") == 0:
            assert time.monotonic() < deadline
        workers = service.wait_for_output(r"Started server process \[(\d+)\]", 2)
        for worker in workers:
            os.kill(int(worker), signal.SIGKILL)
        for each in asking:
            each.join()

        service.wait_for_output("Application startup complete", 4)
        found = now()
        assert figure(found, "usersvc_http_requests_total", route="/register", status="201") >= 1
        assert figure(found, "usersvc_hashing_pending") == 0
        assert figure(found, "usersvc_build_info") == 1
        for probe in ("/livez", "/readyz"):
            with service.client() as client:
                assert client.get(probe).status_code == 200


def test_a_folder_that_is_named_has_only_figures_of_this_run(tmp_path: Path) -> None:
    tmp_path.joinpath("figures").mkdir()
    settings = {"PROMETHEUS_MULTIPROC_DIR": "figures"}
    for _ in range(2):
        with running(tmp_path, settings) as service, service.client() as client:
            client.get("/users")
            assert figure(figures(client), "usersvc_http_requests_total", route="/users", status="200") == 1
        assert [*tmp_path.joinpath("figures").iterdir()]


@pytest.mark.parametrize("folder", ["", "nowhere"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_for_figures_that_is_not_there_stops_the_start(tmp_path: Path, folder: str, workers: str) -> None:
    settings = {"PROMETHEUS_MULTIPROC_DIR": folder, "USERSVC_WORKERS": workers, "USERSVC_PORT": str(free_port())}
    ended = run_to_end(tmp_path, settings)
    told = "usersvc: PROMETHEUS_MULTIPROC_DIR accepts an existing folder that is writable.\n"
    assert (ended.returncode, ended.stderr) == (2, told)


# --- what people look at --------------------------------------------------------------------------------------------


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text("utf-8"))
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(dashboard)
    # Made anew at each import, not taken over from where it was made.
    assert "id" not in dashboard
    [source] = dashboard["templating"]["list"]
    assert (source["type"], source["query"], source["name"]) == ("datasource", "prometheus", "datasource")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        # Grafana's grid has 24 columns.
        assert 0 <= x <= x + width <= 24
        place = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        assert not place & taken
        taken |= place


def test_every_figure_that_is_looked_at_exists(tmp_path: Path) -> None:
    with running(tmp_path) as service, service.client() as client:
        register(client)
        service.wait_for_output("sent a welcome mail")
        there = {
            name
            for family in text_string_to_metric_families(client.get("/metrics").text)
            # Those with labels are there from their first value on: for a failure of the storage there is none.
            for name in [*(sample.name for sample in family.samples), family.name]
        }
    there |= {f"{name}_total" for name in there}
    looked_at = {
        name
        for file in ("dashboard.json", "alerts.yaml", "alerts.test.yaml")
        for name in re.findall(r"\busersvc_\w+", (OBSERVABILITY / file).read_text("utf-8"))
    }
    assert len(looked_at) > 10
    assert not looked_at - there


# --- Prometheus ---------------------------------------------------------------------------------------------------

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
    """A Prometheus with the project's configuration, but for a quicker pace, that scrapes a service."""
    host, target = service.address
    shutil.copy(OBSERVABILITY / "alerts.yaml", folder)
    configuration = (OBSERVABILITY / "prometheus.yaml").read_text("utf-8")
    configuration = configuration.replace("127.0.0.1:8000", f"{host}:{target}").replace("15s", "200ms")
    folder.joinpath("prometheus.yaml").write_text(configuration, "utf-8")
    port = free_port()
    with (
        folder.joinpath("prometheus.log").open("wb") as log,
        subprocess.Popen(
            [
                "prometheus",
                "--config.file=prometheus.yaml",
                "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client,
    ):
        try:
            yield client
        finally:
            process.terminate()
            process.wait(DEADLINE)


def answer(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers a query, as soon as it has data."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            response = client.get("/query", params={"query": query})
            started = response.status_code != httpx.codes.SERVICE_UNAVAILABLE
        except httpx.TransportError:
            started = False
        if not started:
            assert time.monotonic() < deadline, "Prometheus does not start"
            time.sleep(0.05)
            continue
        document = response.json()
        assert document.get("status") == "success", (query, document)
        result: list[dict[str, Any]] = document["data"]["result"]
        if result:
            return result
        assert time.monotonic() < deadline, f"no data for {query}"
        time.sleep(0.05)  # nothing tells when it has scraped often enough


@needs_prometheus
def test_prometheus_scrapes_the_service_and_answers_the_dashboards_queries(tmp_path: Path) -> None:
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 12

    with running(tmp_path) as service, prometheus(tmp_path, service) as client, service.client() as users:
        assert [each["value"][1] for each in answer(client, 'up{job="usersvc"} == 1')] == ["1"]
        for _ in range(3):
            register(users)
            users.get("/users")
        [counted] = answer(client, 'usersvc_http_requests_total{route="/register", status="201"} == 3')
        assert counted["metric"]["job"] == "usersvc"
        for query in queries:
            assert answer(client, re.sub(r"\$__rate_interval", "30s", query))
