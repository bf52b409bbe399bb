"""What --print prints: files that their own readers take, for a bundle with and without PyTorch."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import pytest
import yaml

from answers import last_answer
from vivace.cli import main
from vivace.serving.deploying.files import KINDS, SERVE, WITHOUT_TORCH, printed

INSTRUCTIONS = {"FROM", "COPY", "RUN", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_file_is_filled_in_and_names_the_bundle(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--print", kind, "--json"]) == 0
    text = last_answer(capsys.readouterr().out)["file"]
    assert "bundle" in text
    assert not re.search(r"\$(name|label|install)", text)
    assert main(["serve", "--print", kind]) == 0
    assert capsys.readouterr().out == text


def test_the_image_has_no_torch_where_the_bundle_needs_none(
    folder: Path, graph_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", f"mine={graph_folder}", "--print", "docker"]) == 0
    without = capsys.readouterr().out
    assert "--no-deps /tmp/vivace-*.whl" in without
    assert {*WITHOUT_TORCH, *SERVE, "onnxruntime"} <= set(without.split())
    assert "COPY mine /bundles/mine" in without
    assert main(["serve", str(folder), "--print", "docker"]) == 0
    assert "[serve]" in capsys.readouterr().out
    # every instruction is one of Docker's, and it does not run as root
    for text in (without, printed("docker", "x")):
        lines = re.sub(r"\\\n", " ", text).splitlines()
        words = [line.split()[0] for line in lines if line and not line.startswith("#")]
        assert set(words) <= INSTRUCTIONS
        assert words[0] == "FROM"
        for line in lines:
            if line.startswith(("CMD", "ENTRYPOINT")):
                json.loads(line.partition(" ")[2])
        assert "USER 65534:65534" in text


def test_manifests_are_of_kubernetes_and_give_the_server_nothing_that_it_does_not_need() -> None:
    deployment, service = yaml.safe_load_all(printed("k8s", "My Bundle", "onnx"))
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # names that it takes, and the same ones on both sides
    assert deployment["metadata"]["name"] == "my-bundle"
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == {"app": "my-bundle"}
    # it has the time that answering takes
    assert pod["terminationGracePeriodSeconds"] > 30 + int(container["args"][-1])
    (kserve,) = yaml.safe_load_all(printed("kserve", "My Bundle", "onnx"))
    assert kserve["kind"] == "InferenceService"
    assert kserve["spec"]["predictor"]["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"


def test_the_unit_reloads_by_sighup_and_ends_by_sigterm() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(printed("systemd", "photos", "onnx"))
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["Service"]["KillSignal"] == "SIGTERM"
    assert "/var/lib/vivace/photos" in unit["Service"]["ExecStart"]


def test_the_port_of_grpc_is_named_where_it_is_asked_for_and_nowhere_else() -> None:
    for kind in KINDS:
        assert "grpc" not in printed(kind, "photos", "onnx")
    docker = printed("docker", "photos", "onnx", grpc_port=9001)
    assert "EXPOSE 8000 9001" in docker
    assert {"grpcio", "protobuf"} <= set(docker.split())
    assert "-p 8000:8000 -p 9001:9001" in docker
    command = json.loads(docker.rpartition("CMD ")[2])
    assert command[-2:] == ["--grpc-port", "9001"]
    assert '[serve,grpc]"' in printed("docker", "photos", grpc_port=9001)
    deployment, service = yaml.safe_load_all(printed("k8s", "photos", "onnx", grpc_port=9001))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"][3:5] == ["--grpc-port", "9001"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": 8000, "grpc": 9001}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == {"http": 80, "grpc": 9001}
    (kserve,) = yaml.safe_load_all(printed("kserve", "photos", "onnx", grpc_port=9001))
    (container,) = kserve["spec"]["predictor"]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [8080, 9001]
    assert container["args"][-4:-2] == ["--grpc-port", "9001"]
    assert kserve["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "RawDeployment"}
    assert "--port 8000 --grpc-port 9001\n" in printed("systemd", "photos", "onnx", grpc_port=9001)


def test_what_would_be_ignored_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--print", "k8s", "--grpc-port", "8001"]) == 0
    assert "containerPort: 8001" in capsys.readouterr().out
    for given, said in (
        (["--grpc-port", "0"], "--grpc-port is out of range: got 0"),
        (["--grpc-port", "8000"], "--grpc-port is the port of HTTP in what is printed: got 8000"),
        (["--port", "0"], "--port is out of range: got 0"),
        (["--port", "80"], "--port is out of range: got 80"),
        (["--host", "127.0.0.2"], "--host would be ignored: got 127.0.0.2 and --print"),
        (["--token", "file"], "--token would be ignored: got file and --print"),
        (["--max-batch", "0"], "--max-batch"),
        (["--max-wait", "soon"], "--max-wait is no time: got 'soon'"),
        (["--allow-host", 'a"b'], "--allow-host is no name"),
    ):
        assert main(["serve", "--print", "k8s", *given]) == 2
        assert said in capsys.readouterr().err


def test_more_than_one_bundle_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"a={folder}", f"b={folder}", "--print", "k8s"]) == 2
    assert "--print is for one bundle: got 2" in capsys.readouterr().err


def test_options_of_the_server_are_in_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--port", "9000", "--grpc-port", "9001", "--max-batch", "8", "--max-wait", "2ms", "--queue", "9"]
    given += ["--max-body", "64", "--threads", "4", "--drain", "20", "--allow-host", "a.example, b.example"]
    # as the server takes them, in whatever order
    expected = [*given[:-1], "a.example,b.example", "--log", "requests"]
    pairs = set(zip(expected[::2], expected[1::2], strict=True))

    def told(kind: str) -> str:
        assert main(["serve", "--print", kind, *given, "--log", "requests"]) == 0
        return capsys.readouterr().out

    def found(args: list[str]) -> set[tuple[str, str]]:
        return set(zip(args[::2], args[1::2], strict=True))

    docker = told("docker")
    assert found(json.loads(docker.rpartition("CMD ")[2])[1:]) == pairs | {("--host", "0.0.0.0")}
    assert "EXPOSE 9000 9001" in docker
    assert "-p 9000:9000 -p 9001:9001" in docker
    assert "127.0.0.1:9000/readyz" in docker
    assert "8000" not in docker
    deployment, service = yaml.safe_load_all(told("k8s"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert found(container["args"][1:]) == pairs | {("--host", "0.0.0.0")}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": 9000, "grpc": 9001}
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert pod["terminationGracePeriodSeconds"] == 60
    (kserve,) = yaml.safe_load_all(told("kserve"))
    (container,) = kserve["spec"]["predictor"]["containers"]
    assert found(container["args"][1:]) == pairs | {("--host", "0.0.0.0")}
    assert [port["containerPort"] for port in container["ports"]] == [9000, 9001]
    assert container["readinessProbe"]["httpGet"]["port"] == 9000
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(told("systemd"))
    assert found(unit["Service"]["ExecStart"].split()[3:]) == pairs
    assert unit["Service"]["TimeoutStopSec"] == "60"
