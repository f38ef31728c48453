# The job files, without a Nomad: each is parsed by HashiCorp's own HCL, each block and attribute must be one that Nomad
# has (nomad.json), and whatever one part says of another must be true: ports, flags, variables, the image.

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pygohcl
import pytest
from lab import documents
from lab.cli_commands import command, commands

from spegel_consul import __version__
from spegel_consul.commands import registry
from spegel_consul.preflight.node_address import NodeAddress
from spegel_consul.runtimes import docker

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.nomad.hcl"))
MIRRORS = [path for path in JOBS if path.name.startswith("spegel")]
NOMAD = json.loads((Path(__file__).parent / "nomad.json").read_text())
LABELLED = {"job", "group", "task", "port", "volume"}
FREE = {"env", "meta", "options", "headers"}
RUNTIME = {
    # what Nomad puts in place of a variable of its own, once a task runs
    "NOMAD_PORT_registry": "5000",
    "NOMAD_PORT_router": "5001",
    "NOMAD_PORT_metrics": "23456",
    "NOMAD_IP_registry": "10.0.0.7",
    "NOMAD_HOST_IP_registry": "10.0.0.7",
    "NOMAD_TASK_DIR": "/local",
    "NOMAD_JOB_ID": "spegel",
    "node.unique.name": "n7",
    "attr.unique.network.ip-address": "10.0.0.7",
}
name_of = pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name.removesuffix(".nomad.hcl"))
name_of_mirror = pytest.mark.parametrize("path", MIRRORS, ids=lambda path: path.name.removesuffix(".nomad.hcl"))


def load(path: Path) -> dict[str, Any]:
    return pygohcl.loads(path.read_text())


def bodies(block: str, value: Any) -> Iterator[dict[str, Any]]:
    """The bodies of all blocks of one kind: pygohcl gives one, a list, or one for each label."""
    for each in value if isinstance(value, list) else [value]:
        if block in LABELLED and block != "job":
            for body in each.values():
                yield from body if isinstance(body, list) else [body]
        else:
            yield each


def blocks(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The blocks directly inside a body, those of `dynamic` among them."""
    for name, value in body.items():
        if name == "dynamic":
            for kind, dynamic in value.items():
                yield kind, dynamic["content"]
        elif isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            for each in bodies(name, value):
                yield name, each


def group(path: Path) -> dict[str, Any]:
    (job,) = load(path)["job"].values()
    (found,) = job["group"].values()
    return found


def tasks(path: Path) -> list[dict[str, Any]]:
    return [body for kind, body in blocks(group(path)) if kind == "task"]


def conforms(kind: str, body: dict[str, Any], where: str) -> None:
    if kind in FREE:
        return
    allowed = NOMAD["blocks"][kind]
    inside = list(blocks(body))
    names = {name for name, _ in inside}
    for name in body:
        if name != "dynamic" and name not in names:
            assert name in allowed["attributes"] + allowed["blocks"], f"{where}: {kind} has no attribute {name}"
    for name, inner in inside:
        assert name in allowed["blocks"], f"{where}: {kind} has no block {name}"
        if name == "config":
            driver = "docker" if body["driver"] == "var.driver" else body["driver"]
            unknown = set(inner) - set(NOMAD["drivers"][driver])
            assert not unknown, f"{where}: driver {driver} has no {unknown}"
        else:
            conforms(name, inner, where)


@name_of
def test_every_block_and_attribute_is_nomads(path: Path) -> None:
    document = load(path)
    assert set(document) == {"job", "variable"}
    (job,) = document["job"].values()
    conforms("job", job, path.name)


def test_the_check_finds_what_is_wrong() -> None:
    for wrong in (
        {"resorces": {"cpu": 1}},
        {"kill_timout": "20s"},
        {"driver": "docker", "config": {"network": "host"}},
        {"identity": {"audience": []}},
    ):
        with pytest.raises(AssertionError, match="has no"):
            conforms("task", wrong, "example")


@name_of
def test_its_page_says_what_it_is_for(path: Path) -> None:
    (job,) = load(path)["job"].values()
    assert job["ui"]["description"].endswith(".")


@pytest.mark.parametrize("path", [path for path in MIRRORS if "exec" not in path.name], ids=lambda path: path.stem)
def test_a_container_has_no_more_rights_than_it_needs(path: Path) -> None:
    """As docker/README.md runs it, which a test with the image does."""
    (task,) = [task for task in tasks(path) if "lifecycle" not in task]
    config = task["config"]
    assert config["readonly_rootfs"] is True
    assert (config["cap_drop"], config["security_opt"]) == (["all"], ["no-new-privileges"])


@name_of_mirror
def test_every_service_has_its_port_and_its_checks(path: Path) -> None:
    body = group(path)
    ports = set(body["network"]["port"])
    assert ports == {"registry", "router", "metrics"}
    services = {service["name"]: service for service in body["service"]}
    assert {name: service["port"] for name, service in services.items()} == {
        "spegel": "registry",
        "spegel-router": "router",
        "spegel-metrics": "metrics",
    }
    for service in services.values():
        checks = list(bodies("check", service["check"]))
        assert checks
        assert all(check["type"] in ("http", "tcp") for check in checks)
        assert all(check["path"] in ("/readyz", "/livez") for check in checks if check["type"] == "http")
        # a mirror that is not ready leaves DNS; only one that is not alive is started anew
        assert all(check["path"] == "/livez" for check in checks if "check_restart" in check)
    assert services["spegel-router"]["check"]["type"] == "tcp"


@name_of_mirror
def test_there_is_time_to_leave(path: Path) -> None:
    (task,) = [task for task in tasks(path) if "lifecycle" not in task]
    assert group(path)["shutdown_delay"] == "3s"
    assert task["kill_signal"] == "SIGTERM"
    assert task["kill_timeout"] == "25s"


@name_of
def test_every_flag_and_every_variable_is_ours(path: Path) -> None:
    document = load(path)
    for task in tasks(path):
        given = [word for word in listed(task["config"]["args"]) if word not in ("-m", "spegel_consul")]
        words = [filled(word, document) for word in given]
        found = command(words[0])
        context = found.make_context(words[0], words[1:])
        if words[0] == "configuration":
            assert [target for targets in context.params["mirror_targets"] for target in targets] == [
                "http://127.0.0.1:5000"
            ]
        if words[0] == "registry":
            settings = registry._settings(context.params)
            assert settings.registry_addr.port == 5000
            assert settings.advertise_addr == (NodeAddress("10.0.0.7"),)
        for name in task.get("env", {}):
            assert name in OURS, f"{path.name}: {name} means nothing to us"


def listed(value: str | list[str]) -> list[str]:
    """The words of a list, or of the first list of ``concat([…], …)``, whose others are empty by default."""
    if isinstance(value, list):
        return value
    assert value.startswith("concat(["), value
    words: list[str] = []
    at = len("concat([")
    while (sign := value[at]) != "]":
        at += 1
        if sign != '"':
            continue
        begin, depth = at, 0
        while depth or value[at] != '"':
            depth += value.startswith("${", at) - (value[at] == "}")
            at += 1
        words.append(value[begin:at])
        at += 1
    return words


CONSUL = re.findall(r'"(CONSUL_[A-Z_]+)"', (ROOT / "spegel_consul/consul/api/consul_settings.py").read_text())
FLAGS = [param.envvar for each in commands() for param in each.params if isinstance(param, click.Option)]
OURS = {*CONSUL, *filter(None, FLAGS), "PYTHONPATH"}


def filled(word: str, document: dict[str, Any]) -> str:
    """A word of a command line, as the task will see it."""
    if word.startswith("--runtime="):
        assert "var.runtime" in word
        return "--runtime=docker"
    for name, value in {**defaults(document), **RUNTIME}.items():
        word = (
            word.replace(f'${{join(",", {name})}}', value)
            .replace(f'join(",", {name})', value)
            .replace(f"${{{name}}}", value)
        )
        word = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", value, word)
    assert not re.search(r"\bvar\.|NOMAD_|attr\.|node\.", word), word
    return word


def defaults(document: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, variable in document["variable"].items():
        value = variable.get("default", "")
        if isinstance(value, bool):
            value = str(value).lower()
        found[f"var.{name}"] = ",".join(value) if isinstance(value, list) else str(value)
    return found


@name_of
def test_every_variable_is_declared_and_used(path: Path) -> None:
    text = path.read_text()
    used = set(re.findall(r"\bvar\.(\w+)", text))
    declared = load(path)["variable"]
    unused = {
        name for name, variable in declared.items() if variable.get("description", "").startswith("Not used here")
    }
    assert used | unused == set(declared)
    assert not used & unused
    for name, variable in declared.items():
        assert "default" in variable or name in ("artifact", "artifact_checksum", "image"), name


def test_a_docker_with_the_systems_containerd_has_its_directories_and_dockers_namespace() -> None:
    vars = {path.stem: pygohcl.loads(path.read_text()) for path in (ROOT / "jobs/vars").glob("*.hcl")}
    assert vars["docker-system"] == vars["containerd"] | {"containerd_namespace": "moby"}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/vars").glob("*.hcl")), ids=lambda path: path.stem)
def test_variable_files_fit_all_jobs_but_the_one_with_volumes_of_the_clients(path: Path) -> None:
    given = set(pygohcl.loads(path.read_text()))
    for job in JOBS:
        if "spegel-exec" not in job.name:
            assert given <= set(load(job)["variable"]), job.name


def test_the_policy_allows_the_variable_that_the_job_locks() -> None:
    (flag,) = [
        word
        for word in listed(tasks(ROOT / "jobs/spegel-nomad-native.nomad.hcl")[0]["config"]["args"])
        if word.startswith("--nomad-variable=")
    ]
    policy = pygohcl.loads((ROOT / "jobs/acl/spegel-variable.hcl").read_text())
    paths = policy["namespace"]["default"]["variables"]["path"]
    assert filled(flag, {"variable": {}}).partition("=")[2] in paths


def test_no_job_without_consul_speaks_of_it() -> None:
    body = group(ROOT / "jobs/spegel-nomad-native.nomad.hcl")
    assert all(service["provider"] == "nomad" for service in body["service"])
    assert "consul {" not in (ROOT / "jobs/spegel-nomad-native.nomad.hcl").read_text()


@name_of
def test_no_image_is_named_that_nobody_has_published(path: Path) -> None:
    """Of the image that is built from here there is no public copy, so a default would fail on each node."""
    assert "default" not in load(path)["variable"].get("image", {})
    assert "ghcr.io" not in path.read_text()


@name_of_mirror
def test_an_operator_can_change_what_differs_between_clusters(path: Path) -> None:
    (job,) = load(path)["job"].values()
    assert (job["priority"], job["update"]["max_parallel"]) == ("var.priority", "var.max_parallel")
    declared = load(path)["variable"]
    for name in ("priority", "max_parallel", "metrics_port"):
        assert declared[name]["type"] == "number"
    assert group(path)["network"]["port"]["metrics"]["static"] == "var.metrics_port"
    (task,) = [task for task in tasks(path) if "lifecycle" not in task]
    assert task["config"]["args"].endswith("var.extra_args)")
    if task["driver"] == "docker":
        assert task["config"]["ulimit"] == {"nofile": "var.nofile"}
        assert declared["nofile"]["default"] == "65536:65536"
        assert "/etc/spegel:ro" in task["config"]["volumes"]


@name_of
def test_a_job_that_ends_runs_again_whenever_it_is_run(path: Path) -> None:
    """Nomad leaves out nodes on which an unchanged job has ended, also where it failed."""
    (job,) = load(path)["job"].values()
    assert (job["type"] == "sysbatch") == (job.get("meta") == {"run": "uuidv4()"})


def test_the_readme_says_which_jobs_make_room_for_the_mirror() -> None:
    """Nomad spares only allocations whose priority is less than 10 below that of the job."""
    text = " ".join((ROOT / "jobs/README.md").read_text().split())
    priority = load(ROOT / "jobs/spegel.nomad.hcl")["variable"]["priority"]["default"]
    assert f"priority of {priority - 10} or below for the mirror" in text
    (other,) = re.findall(r"With `-var priority=(\d+)`", text)
    assert f"only those of {int(other) - 10} or below" in text


@pytest.mark.parametrize("name", ["configure", "cleanup"])
def test_podman_can_run_what_changes_its_files(name: str) -> None:
    path = ROOT / f"jobs/{name}.nomad.hcl"
    variables = load(path)["variable"]
    assert variables["driver"]["default"] == "docker"
    assert variables["config_directories"]["default"] == ["/etc/containerd", "/etc/docker"]
    (task,) = tasks(path)
    assert task["driver"] == "var.driver"
    # both drivers have these (github.com/hashicorp/nomad-driver-podman)
    assert set(task["config"]) == {"image", "network_mode", "args", "volumes"}
    assert task["config"]["volumes"] == '[for directory in var.config_directories : "${directory}:${directory}"]'


def test_a_runtime_s_own_port_is_open_on_the_network_that_the_job_names() -> None:
    path = ROOT / "jobs/spegel-bridge.nomad.hcl"
    dynamic = group(path)["network"]["dynamic"]["port"]
    assert dynamic["labels"] == ["runtime"]
    assert dynamic["content"]["host_network"] == "var.runtime_host_network"
    declared = load(path)["variable"]
    assert declared["runtime_port"]["default"] == 0
    assert declared["runtime_host_network"]["default"] == "loopback"
    (task,) = tasks(path)
    assert 'var.runtime_port > 0 ? ["--runtime-addr=:${var.runtime_port}"] : []' in task["config"]["args"]


@pytest.mark.parametrize("name", ["configure", "spegel"])
def test_a_job_that_writes_the_runtimes_files_can_leave_tags_to_the_registry(name: str) -> None:
    path = ROOT / f"jobs/{name}.nomad.hcl"
    (args,) = [task["config"]["args"] for task in tasks(path) if task["config"]["args"][0] == "configuration"]
    assert "--resolve-tags=var.resolve_tags" in args
    assert load(path)["variable"]["resolve_tags"]["default"] is True


@pytest.mark.parametrize("name", ["configure", "spegel"])
def test_where_docker_reads_hosts_toml_it_is_new_enough(name: str) -> None:
    constraint = group(ROOT / f"jobs/{name}.nomad.hcl")["dynamic"]["constraint"]
    assert constraint["content"] == {
        "attribute": "attr.driver.docker.version",
        "operator": "version",
        "value": f">= {docker._FIRST_WITH_HOSTS}.0.0",
    }


@name_of
def test_the_readme_s_command_leaves_out_what_nomad_1_6_refuses_and_nothing_else(path: Path, tmp_path: Path) -> None:
    (line,) = [line for line in documents.lines("jobs/README.md") if line.startswith("sed ")]
    shutil.copy(path, tmp_path)
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, timeout=20)
    left = load(tmp_path / path.name)
    expected = load(path)
    for job in expected["job"].values():
        del job["ui"]
        for group in job["group"].values():
            group.get("task", {}).get("spegel", {}).pop("consul", None)
    assert left == expected


def test_the_readmes_version_is_this_one() -> None:
    for page in documents.PAGES:
        for version in re.findall(r"registry\.example\.com/spegel:([\d.]+)", (ROOT / page).read_text()):
            assert version == __version__


@name_of
def test_the_readme_names_every_job(path: Path) -> None:
    assert f"`{path.name}`" in (ROOT / "jobs/README.md").read_text()
