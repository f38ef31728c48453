"""Flags that name the runtimes' files, for the commands that write, undo and check them.

A flag about another file of a runtime belongs here.
"""

from __future__ import annotations

from spegel_consul.commands.option_types import path_option, together

containerd_registry_config_path = path_option(
    "--containerd-registry-config-path", "/etc/containerd/certs.d", help="The config_path of containerd."
)
docker_certs_path = path_option(
    "--docker-certs-path",
    "/etc/docker/certs.d",
    help="The same for Docker 28 and later with the containerd image store.",
)
docker_daemon_config = path_option(
    "--docker-daemon-config", "/etc/docker/daemon.json", help="Docker's own configuration."
)
containers_config_path = path_option(
    "--containers-config-path",
    "/etc/containers",
    help="The directory of registries.conf, which podman, skopeo, Buildah and CRI-O read.",
)
buildkitd_config = path_option("--buildkitd-config", "/etc/buildkit/buildkitd.toml", help="BuildKit's configuration.")

runtime_files = together(
    containerd_registry_config_path,
    docker_certs_path,
    docker_daemon_config,
    containers_config_path,
    buildkitd_config,
)
