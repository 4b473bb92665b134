"""What ``deploy/`` says is so: settings, ports, paths, files; and nothing there has rights that it does not need."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson
import pytest
import yaml

from usersvc.config import SECRETS, Settings
from usersvc.setting_parsers import PostgresDatabase
from usersvc.web.app import ROUTES
from usersvc.web.problems import PROBLEMS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
NGINX = (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8")
MANIFESTS: dict[str, Any] = {
    document["kind"]: document
    for path in (DEPLOY / "kubernetes").glob("*.yaml")
    for document in yaml.safe_load_all(path.read_text("utf-8"))
}
POD: dict[str, Any] = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]
PATHS = {route.path for route in ROUTES}


def test_only_settings_that_exist_are_named() -> None:
    text = "".join(path.read_text("utf-8") for path in DEPLOY.rglob("*") if path.is_file())
    named = dict.fromkeys(re.findall(r"USERSVC_[A-Z_]+", text), "")
    assert len(named) > 10
    assert Settings.from_environment(named).without_effect == ()


def settings_in_compose() -> dict[str, str]:
    environment: dict[str, str] = COMPOSE["services"]["usersvc-1"]["environment"]
    assert environment == COMPOSE["services"]["usersvc-2"]["environment"]
    # As compose fills in what is not set.
    return {name: re.sub(r"\$\{\w+:?-(.*)\}", r"\1", value) for name, value in environment.items()}


def settings_in_kubernetes() -> dict[str, str]:
    literals: list[str] = MANIFESTS["Kustomization"]["configMapGenerator"][0]["literals"]
    return dict(each.split("=", 1) for each in literals) | {each["name"]: each["value"] for each in CONTAINER["env"]}


@pytest.mark.parametrize("settings", [settings_in_compose(), settings_in_kubernetes()], ids=["compose", "kubernetes"])
def test_the_settings_are_accepted(settings: dict[str, str]) -> None:
    open_to_see = {name: value for name, value in settings.items() if not name.endswith("_FILE")}
    read = Settings.from_environment(open_to_see)
    assert read.trusted_proxies
    assert (read.hash_workers, read.workers, read.log_format) == (1, 1, "json")
    # No secret stands there itself.
    assert not [name for name in SECRETS if open_to_see.get(name)]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_every_secret_of_compose_is_made_and_mounted(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "make-secrets", tmp_path)
    for _ in range(2):
        subprocess.run([tmp_path / "make-secrets"], check=True)
        made = {path.name: path.read_text("utf-8") for path in (tmp_path / "secrets").iterdir()}
        assert set(made) - {"redis-password"} == set(COMPOSE["secrets"])
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} == {
        f"./secrets/{name}" for name in COMPOSE["secrets"]
    }
    for service in COMPOSE["services"].values():
        mounted = set(service.get("secrets", ()))
        read = set(re.findall(r"/run/secrets/([\w.-]+)", str(service)))
        if "nginx" in service["image"]:
            read |= set(re.findall(r"/run/secrets/([\w.-]+)", NGINX))
        assert read == mounted

    # They are what the service takes, and what it is to find.
    pepper, token, store = (made[name].strip() for name in ("password-pepper", "admin-token", "rate-limit-store"))
    settings = Settings.from_environment(
        {"USERSVC_PASSWORD_PEPPER": pepper, "USERSVC_ADMIN_TOKEN": token, "USERSVC_RATE_LIMIT_STORE": store}
    )
    assert len(settings.admin_token or "") >= 43
    addresses = {name: service["networks"]["inside"]["ipv4_address"] for name, service in COMPOSE["services"].items()}
    assert f"@{addresses['postgres']}:5432/" in made["database-url"]
    assert f"@{addresses['redis']}:6379/" in store
    assert made["redis-password"] in store
    assert made["redis-password"] in made["redis.conf"]
    assert made["postgres-password"] in made["database-url"]
    assert settings_in_compose()["USERSVC_TRUSTED_PROXIES"] == addresses["proxy"]
    upstreams = re.findall(r"^ +server ([\d.]+):(\d+)", NGINX, re.MULTILINE)
    assert upstreams == [(addresses["usersvc-1"], "8000"), (addresses["usersvc-2"], "8000")]


def test_compose_gives_nobody_more_than_is_needed() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        # The service's own image has a user and a check.
        assert service["image"] == "usersvc" or {"user", "healthcheck"} <= set(service), name
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["proxy"]
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_images_of_others_are_pinned_by_digest_with_the_version_in_a_comment() -> None:
    compose, makefile = (DEPLOY / "compose.yaml").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    images = re.findall(r"^(.*)\n +image: (?!usersvc$)(\S+)", compose, re.MULTILINE)
    [base] = re.findall(r"^(.*)\n +python:3.13-slim: docker-image://(\S+)", compose, re.MULTILINE)
    assert f"BASE_IMAGE := {base[1]}\n" in makefile
    assert {re.split("[:@]", image)[0] for _, image in [*images, base]} == {"python", "nginx", "postgres", "redis"}
    for comment, image in [*images, base]:
        assert re.fullmatch(r"[a-z]+(:[\w.-]+)?@sha256:[0-9a-f]{64}", image), image
        assert re.search(r"# \w+ \d+\.\d+", comment), image
    # What the build context replaces is the only image that the Dockerfile names.
    assert re.findall(r"^FROM (?!base\b)(\S+)", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE) == [
        "python:3.13-slim"
    ]


def test_the_build_tool_is_pinned_by_hashes_of_every_file() -> None:
    pinned = (ROOT / "tools" / "poetry.txt").read_text("utf-8")
    wanted = (ROOT / "tools" / "poetry.in").read_text("utf-8")
    requirements = [each.split() for each in re.sub(r"(?m)^#.*\n", "", pinned).replace("\\\n", "").splitlines()]
    for requirement in requirements:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+", requirement[0]), requirement[0]
        assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", requirement[-1]), requirement[0]
    assert set(re.findall("(?m)^[^#].+", wanted)) <= {requirement[0] for requirement in requirements}
    # No address of an index.
    assert "://" not in pinned
    for file in ("Makefile", "Dockerfile"):
        for line in re.findall(r".*-requirement tools/poetry\.txt", (ROOT / file).read_text("utf-8")):
            assert "--require-hashes" in line


def test_ports_are_the_ones_that_are_listened_on() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert "EXPOSE 8000" in dockerfile
    assert "USERSVC_PORT=8000" in dockerfile
    [port] = CONTAINER["ports"]
    assert (port["name"], port["containerPort"]) == ("http", 8000)
    [served] = MANIFESTS["Service"]["spec"]["ports"]
    assert (served["name"], served["targetPort"]) == ("http", "http")
    assert COMPOSE["services"]["proxy"]["ports"] == ["127.0.0.1:8443:8443"]
    assert "listen 8443 ssl" in NGINX


def test_paths_are_the_ones_that_the_service_has() -> None:
    probes = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert all(probe["path"] in PATHS and probe["port"] == "http" for probe in probes.values())
    assert (probes["livenessProbe"]["path"], probes["readinessProbe"]["path"]) == ("/livez", "/readyz")

    [rule] = MANIFESTS["Ingress"]["spec"]["rules"]
    reached = {path for path in PATHS for each in rule["http"]["paths"] if admits(each, path)}
    assert PATHS - reached == {"/metrics", "/livez", "/readyz"}
    assert all(any(admits(each, path) for path in PATHS) for each in rule["http"]["paths"])
    located = set(re.findall(r"location = (\S+)", NGINX)) - {"/livez", "/problem"}
    assert located == {"/users", "/metrics"}
    assert located < PATHS


def admits(rule: dict[str, Any], path: str) -> bool:
    prefix = rule["pathType"] == "Prefix" and path.startswith(f"{rule['path']}/")
    return prefix or bool(path == rule["path"])


def test_the_pod_has_no_rights_that_it_does_not_need() -> None:
    security = POD["securityContext"] | CONTAINER["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in (ROOT / "Dockerfile").read_text("utf-8")
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert set(CONTAINER["resources"]) == {"requests", "limits"}
    secrets = {Path(each["value"]).name for each in CONTAINER["env"] if each["name"].endswith("_FILE")}
    kept: dict[str, str] = MANIFESTS["Secret"]["stringData"]
    database = Settings.from_environment({"USERSVC_DATABASE_URL": kept["database-url"]}).database
    assert isinstance(database, PostgresDatabase)
    options = dict(parse_qsl(urlsplit(database.url).query))
    assert options.pop("sslmode") == "verify-full"
    assert secrets | {Path(options.pop("sslrootcert")).name} == set(kept)
    assert not options
    [mount] = [each for each in CONTAINER["volumeMounts"] if each["name"] == "secrets"]
    assert all(
        each["value"].startswith(f"{mount['mountPath']}/")
        for each in CONTAINER["env"]
        if each["name"].endswith("_FILE")
    )
    assert f"sslrootcert={mount['mountPath']}/" in database.url
    assert all("CHANGE-ME" in value for value in MANIFESTS["Secret"]["stringData"].values())
    assert "secret.example.yaml" not in MANIFESTS["Kustomization"]["resources"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_makes_one_of_everything() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=True
    )
    documents = {each["kind"]: each for each in yaml.safe_load_all(built.stdout)}
    assert set(documents) == set(MANIFESTS) - {"Kustomization", "Secret"} | {"ConfigMap"}
    pod = documents["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert container["envFrom"][0]["configMapRef"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    selectors = (
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
        documents["Service"]["spec"]["selector"],
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    )
    assert all(selector.items() <= pod["metadata"]["labels"].items() for selector in selectors)


def test_the_proxy_logs_and_returns_nothing_that_leads_to_an_idempotency_key() -> None:
    secrets = r"\$(request_id|generated_key|key|http_idempotency_key)\b"
    used = [line.strip() for line in NGINX.splitlines() if re.search(secrets, line.partition("#")[0])]
    assert used == [
        "map $request_id $generated_id {",
        "map $request_id $generated_key {",
        "map $http_idempotency_key $key {",
        "default $http_idempotency_key;",
        '"" $generated_key;',
        "proxy_set_header Idempotency-Key $key;",
    ]


def test_the_proxys_problems_are_those_of_the_service() -> None:
    problems = [
        (int(status), orjson.loads(document))
        for status, document in re.findall(r"^ +(\d+) '(\{.*\})';", NGINX, re.MULTILINE)
    ]
    assert len(problems) == 7
    for status, document in problems:
        kind = PROBLEMS[document["code"]]
        assert (document["status"], document["title"]) == (kind.status, kind.title)
        assert status == kind.status
        assert document["type"] == f"/problems/{kind.code}"
        assert set(document) == {"type", "title", "status", "detail", "instance", "code"}
    # Each status has one, and nothing is answered under another.
    pages = re.findall(r"error_page ([\d ]+?)(?: =(\d+))? /problem;", NGINX)
    answered = {int(status) for statuses, instead in pages for status in (instead or statuses).split()}
    assert answered == {status for status, _ in problems}
