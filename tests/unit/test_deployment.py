"""The files in ``deploy/`` and ``.github/`` agree with the code and each other, and grant no unnecessary rights."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson
import pytest
import yaml

import usersvc
from usersvc.config import SECRETS, Settings
from usersvc.setting_parsers import PostgresDatabase
from usersvc.web.app import ROUTES
from usersvc.web.problems import PROBLEMS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MAKEFILE, DOCKERFILE = (ROOT.joinpath(name).read_text("utf-8") for name in ("Makefile", "Dockerfile"))
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
WORKFLOWS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")
}
STEPS = [step for workflow in WORKFLOWS.values() for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_named_setting_exists() -> None:
    text = "".join(path.read_text("utf-8") for path in DEPLOY.rglob("*") if path.is_file())
    named = dict.fromkeys(re.findall(r"USERSVC_[A-Z_]+", text), "")
    assert len(named) > 10
    assert Settings.from_environment(named).without_effect == ()


def test_the_examples_of_the_settings_file_are_accepted() -> None:
    examples = dict(re.findall(r"^# (USERSVC_\w+)=(.*)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    assert len(examples) > 5
    assert Settings.from_environment(examples).without_effect == ()


def test_workflows_only_read_by_default_and_use_existing_targets_and_files() -> None:
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in WORKFLOWS.values())
    commands = "\n".join(step.get("run", "") for step in STEPS)
    made = {target for line in re.findall(r"^make (.+)$", commands, re.MULTILINE) for target in line.split()}
    assert {"docs", "audit", "build", "sbom", "docker"} <= made
    assert made <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    [written] = [step["with"]["sbom-path"] for step in STEPS if "sbom-path" in step.get("with", {})]
    assert f"--output-file {written} " in MAKEFILE
    passed = "\n".join(step["with"]["build-args"] for step in STEPS if "build-args" in step.get("with", {}))
    arguments = re.findall(r"--build-arg (\w+)", MAKEFILE) + re.findall(r"^(\w+)=", passed, re.MULTILINE)
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert {"SOURCE", "VERSION", "REVISION"} <= set(arguments) <= declared


@pytest.mark.parametrize(("tag", "code"), [(f"v{usersvc.__version__}", 0), ("v0.0", 1)])
def test_only_the_tag_of_the_version_is_released(tag: str, code: int) -> None:
    [command] = [step["run"] for step in STEPS if step.get("name") == "The tag is the version"]
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, env={"GITHUB_REF_NAME": tag}, check=False).returncode == code


def settings_in_compose() -> dict[str, str]:
    environment: dict[str, str] = COMPOSE["services"]["usersvc-1"]["environment"]
    assert environment == COMPOSE["services"]["usersvc-2"]["environment"]
    # With the defaults that Compose uses for unset variables.
    return {name: re.sub(r"\$\{\w+:?-(.*)\}", r"\1", value) for name, value in environment.items()}


def settings_in_kubernetes() -> dict[str, str]:
    literals: list[str] = MANIFESTS["Kustomization"]["configMapGenerator"][0]["literals"]
    return dict(each.split("=", 1) for each in literals) | {each["name"]: each["value"] for each in CONTAINER["env"]}


@pytest.mark.parametrize("settings", [settings_in_compose(), settings_in_kubernetes()], ids=["compose", "kubernetes"])
def test_the_settings_are_accepted(settings: dict[str, str]) -> None:
    plain = {name: value for name, value in settings.items() if not name.endswith("_FILE")}
    read = Settings.from_environment(plain)
    assert read.trusted_proxies
    assert (read.hash_workers, read.workers, read.log_format) == (1, 1, "json")
    assert not [name for name in SECRETS if plain.get(name)]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_every_secret_of_compose_is_created_and_mounted(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "make-secrets", tmp_path)
    for _ in range(2):
        subprocess.run([tmp_path / "make-secrets"], check=True)
    made = {path.name: path.read_text("utf-8") for path in (tmp_path / "secrets").iterdir()}
    assert set(made) - {"redis-password"} == set(COMPOSE["secrets"])
    assert COMPOSE["secrets"] == {name: {"file": f"./secrets/{name}"} for name in COMPOSE["secrets"]}
    for service in COMPOSE["services"].values():
        text = str(service) + (NGINX if "nginx" in service["image"] else "")
        assert set(re.findall(r"/run/secrets/([\w.-]+)", text)) == set(service.get("secrets", ()))

    names = ("password-pepper", "admin-token", "rate-limit-store")
    variables = {f"USERSVC_{name.upper().replace('-', '_')}": made[name].strip() for name in names}
    settings = Settings.from_environment(variables)
    assert len(settings.admin_token or "") >= 43
    addresses = {name: service["networks"]["inside"]["ipv4_address"] for name, service in COMPOSE["services"].items()}
    assert f":{made['postgres-password']}@{addresses['postgres']}:5432/" in made["database-url"]
    assert f":{made['redis-password']}@{addresses['redis']}:6379/" in made["rate-limit-store"]
    assert made["redis-password"] in made["redis.conf"]
    assert settings_in_compose()["USERSVC_TRUSTED_PROXIES"] == addresses["proxy"]
    upstreams = re.findall(r"^ +server ([\d.]+):(\d+)", NGINX, re.MULTILINE)
    assert upstreams == [(addresses["usersvc-1"], "8000"), (addresses["usersvc-2"], "8000")]


def test_services_of_compose_have_no_unnecessary_rights() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        # The image of the service has a user and a health check itself.
        assert service["image"] == "usersvc" or {"user", "healthcheck"} <= set(service), name
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["proxy"]
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_base_images_are_pinned_by_digest_with_the_version_in_a_comment() -> None:
    compose = (DEPLOY / "compose.yaml").read_text("utf-8")
    images = re.findall(r"^(.*)\n +image: (?!usersvc$)(\S+)", compose, re.MULTILINE)
    [base] = re.findall(r"^(.*)\n +python:3.13-slim: docker-image://(\S+)", compose, re.MULTILINE)
    assert f"BASE_IMAGE := {base[1]}\n" in MAKEFILE
    assert {re.split("[:@]", image)[0] for _, image in [*images, base]} == {"python", "nginx", "postgres", "redis"}
    for comment, image in [*images, base]:
        assert re.fullmatch(r"[a-z]+(:[\w.-]+)?@sha256:[0-9a-f]{64}", image), image
        assert re.search(r"# \w+ \d+\.\d+", comment), image
    # The build context replaces this tag by the digest.
    assert re.findall(r"^FROM (?!base\b)(\S+)", DOCKERFILE, re.MULTILINE) == ["python:3.13-slim"]


def test_the_build_tool_is_installed_only_with_pinned_hashes() -> None:
    pinned = (ROOT / "tools" / "poetry.txt").read_text("utf-8")
    for requirement in re.findall("(?m)^[^#].+", (ROOT / "tools" / "poetry.in").read_text("utf-8")):
        assert f"{requirement} " in pinned
    # No address of an index.
    assert "://" not in pinned
    assert all("--require-hashes" in line for line in re.findall(r".*-requirement tools/.*", MAKEFILE + DOCKERFILE))


def test_ports_agree() -> None:
    assert "EXPOSE 8000" in DOCKERFILE
    assert "USERSVC_PORT=8000" in DOCKERFILE
    [port], [served] = CONTAINER["ports"], MANIFESTS["Service"]["spec"]["ports"]
    assert (port["name"], port["containerPort"], served["name"], served["targetPort"]) == ("http", 8000, "http", "http")
    assert COMPOSE["services"]["proxy"]["ports"] == ["127.0.0.1:8443:8443"]
    assert "listen 8443 ssl" in NGINX


def test_named_paths_exist() -> None:
    for name, path in (("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")):
        assert CONTAINER[f"{name}Probe"]["httpGet"] == {"path": path, "port": "http"}
    [rule] = MANIFESTS["Ingress"]["spec"]["rules"]
    reached = [{path for path in PATHS if admits(each, path)} for each in rule["http"]["paths"]]
    assert all(reached)
    assert PATHS - set().union(*reached) == {"/metrics", "/livez", "/readyz"}
    assert set(re.findall(r"location = (\S+)", NGINX)) - {"/livez", "/problem"} == {"/users", "/metrics"}


def admits(rule: dict[str, Any], path: str) -> bool:
    is_below = rule["pathType"] == "Prefix" and path.startswith(f"{rule['path']}/")
    return is_below or bool(path == rule["path"])


def test_the_pod_has_no_unnecessary_rights() -> None:
    security = POD["securityContext"] | CONTAINER["securityContext"]
    user, group = security.pop("runAsUser"), security.pop("runAsGroup")
    assert f"USER {user}:{group}" in DOCKERFILE
    assert security == {
        "runAsNonRoot": True,
        "fsGroup": group,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert POD["automountServiceAccountToken"] is False
    assert set(CONTAINER["resources"]) == {"requests", "limits"}


def test_every_secret_of_the_pod_is_in_the_example_and_mounted() -> None:
    example: dict[str, str] = MANIFESTS["Secret"]["stringData"]
    assert all("CHANGE-ME" in value for value in example.values())
    assert "secret.example.yaml" not in MANIFESTS["Kustomization"]["resources"]
    database = Settings.from_environment({"USERSVC_DATABASE_URL": example["database-url"]}).database
    assert isinstance(database, PostgresDatabase)
    options = dict(parse_qsl(urlsplit(database.url).query))
    assert options.keys() == {"sslmode", "sslrootcert"}
    assert options["sslmode"] == "verify-full"
    files = [Path(each["value"]) for each in CONTAINER["env"] if each["name"].endswith("_FILE")]
    files.append(Path(options["sslrootcert"]))
    assert {file.name for file in files} == set(example)
    [mount] = [each for each in CONTAINER["volumeMounts"] if each["name"] == "secrets"]
    assert {str(file.parent) for file in files} == {mount["mountPath"]}


def test_problems_of_the_proxy_equal_those_of_the_service() -> None:
    problems = {
        int(status): orjson.loads(document)
        for status, document in re.findall(r"^ +(\d+) '(\{.*\})';", NGINX, re.MULTILINE)
    }
    assert len(problems) == 7
    for status, document in problems.items():
        kind = PROBLEMS[document["code"]]
        assert (status, document["status"], document["title"]) == (kind.status, kind.status, kind.title)
        assert document["type"] == f"/problems/{kind.code}"
        assert set(document) == {"type", "title", "status", "detail", "instance", "code"}
    # Each status that nginx responds with has a problem.
    pages = re.findall(r"error_page ([\d ]+?)(?: =(\d+))? /problem;", NGINX)
    assert {int(status) for statuses, instead in pages for status in (instead or statuses).split()} == set(problems)
