"""The sections of ``registry --help``: some sixty flags are read by what they are about.

A flag belongs to the section that lists it. A flag that no section lists is an error of the tests, and is shown in a
last section until then.
"""

from __future__ import annotations

import click

SECTIONS = {
    "Addresses": (
        "registry-addr",
        "runtime-addr",
        "router-addr",
        "metrics-addr",
        "advertise-addr",
        "node-name",
        "web-allowed-hosts",
    ),
    "Content": (
        "containerd-sock",
        "containerd-namespace",
        "containerd-content-path",
        "layout-path",
        "data-dir",
        "preheat",
        "docker-sock",
        "containerd-registry-config-path",
    ),
    "Mirror": (
        "mirrored-registries",
        "registry-filters",
        "mirror-resolve-timeout",
        "mirror-resolve-retries",
        "follow",
        "follow-chain",
        "peer-min-rate",
    ),
    "Choosing among nodes": (
        "zone",
        "zone-from",
        "cross-zone",
        "tag-max-age",
        "tag-check",
        "max-upload",
        "upload-rate-limit",
        "download-rate-limit",
    ),
    "Security": (
        "verify",
        "verify-first",
        "peer-policy",
        "peer-tls",
        "tls-cert-file",
        "tls-key-file",
        "tls-ca-file",
        "tls-verify-clients",
        "basic-auth-file",
    ),
    "Finding the ring": (
        "bootstrap-kind",
        "static-bootstrap-peers",
        "http-bootstrap-url",
        "http-bootstrap-cert-dir",
        "dns-bootstrap-domain",
        "dns-bootstrap-server",
        "nomad-variable",
        "nomad-service",
        "bootstrap-file",
        "on-leader-change",
    ),
    "Consul": ("consul-service", "consul-leader-key", "consul-session-ttl", "consul-lock-delay"),
    "Life": ("hang-timeout", "skip-preflight", "log-level", "log-format", "help"),
}
"""Flags without their dashes, by the titles of the sections."""
OTHERS = "Other options"


class SectionedCommand(click.Command):
    """A command whose help has its flags in :data:`SECTIONS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        section_of = {f"--{flag}": title for title, flags in SECTIONS.items() for flag in flags}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*SECTIONS, OTHERS)}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                rows[section_of.get(param.opts[-1], OTHERS)].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
