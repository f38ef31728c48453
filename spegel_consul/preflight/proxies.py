"""HTTP proxies between a runtime and its mirror. No I/O.

containerd and Docker take the proxy of their environment for every address but loopback (net/http of Go). A proxy in
front of a mirror fails a pull if it answers with a page, hangs it if it says nothing, and takes the mirror out of use
without a message if it refuses. So the mirror must be excepted by NO_PROXY, or be asked at loopback.

The URL of a proxy may have a password, so only its presence is kept. A new rule of Go's NO_PROXY belongs here
(golang.org/x/net/http/httpproxy).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from spegel_consul.endpoints.check import Check, fail, ok
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.runtimes import redaction
from spegel_consul.runtimes.docker import Docker

HTTP, HTTPS, EXCEPT = ("HTTP_PROXY", "http_proxy"), ("HTTPS_PROXY", "https_proxy"), ("NO_PROXY", "no_proxy")
VARIABLES = (*HTTP, *HTTPS, *EXCEPT)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxies:
    """Whether a runtime has proxies for http:// and https://, and its exceptions."""

    http: bool = False
    https: bool = False
    no_proxy: str = ""

    @classmethod
    def of_environment(cls, variables: Mapping[str, str]) -> Proxies:
        """As Go takes them: the first of the two spellings that is not empty."""
        http, https, no_proxy = (
            next(filter(None, (variables.get(name) for name in names)), "") for names in (HTTP, HTTPS, EXCEPT)
        )
        return cls(bool(http), bool(https), no_proxy)

    @classmethod
    def of_docker(cls, docker: Docker) -> Proxies:
        return cls(docker.has_http_proxy, docker.has_https_proxy, docker.no_proxy)

    def catch(self, url: str) -> bool:
        """Whether a request to ``url`` goes to a proxy."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").removesuffix("."), parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            return False
        if not host or not {"http": self.http, "https": self.https}.get(parts.scheme, False):
            return False
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if host == "localhost" or (address is not None and address.is_loopback):
            return False
        return not any(_excepts(entry.strip().lower(), host, port, address) for entry in self.no_proxy.split(","))

    def exceptions_with(self, urls: Iterable[str]) -> str:
        """The NO_PROXY that excepts the hosts of ``urls`` too."""
        hosts = dict.fromkeys(urlsplit(url).hostname or "" for url in urls if self.catch(url))
        return ",".join([*filter(None, [self.no_proxy.strip().strip(",")]), *hosts])


def check_of(runtime: str, proxies: Proxies | None, urls: Iterable[str]) -> Check:
    """Whether ``runtime`` (``containerd`` or ``docker``) asks its mirrors ``urls`` itself.

    ``proxies``: None if the environment of the runtime can't be read.
    """
    name = f"{runtime}-proxy"
    urls = tuple(urls)
    if proxies is None:
        return ok(name, f"not checked: the environment of {runtime} can't be read")
    caught = [url for url in urls if proxies.catch(url)]
    shown = ", ".join(map(redaction.url, caught or urls))
    if not caught:
        return ok(name, f"{runtime} asks {shown} itself, without a proxy")
    where = f"# the environment of {runtime}, as in systemctl edit {runtime}; then restart it"
    if runtime == "docker":
        where = "# Environment= of docker.service, or no-proxy in daemon.json; then restart Docker"
    return fail(
        name,
        f"{runtime} has an HTTP proxy and no exception for {shown}, so it asks the proxy: pulls fail or hang, or the"
        " mirror is left out without a message",
        f"{where}\nNO_PROXY={proxies.exceptions_with(caught)}\n# or, without a restart, if the registry listens on"
        f" loopback\nspegel-consul configuration --runtime {runtime}",
    )


def _excepts(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """Whether one entry of NO_PROXY is for this host."""
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    wanted = entry
    if entry.count(":") == 1 or entry.startswith("["):
        name, colon, number = entry.rpartition(":")
        if colon and number.isdecimal():
            if int(number) != port:
                return False
            wanted = name
    wanted = wanted.removeprefix("[").removesuffix("]")
    if address is not None:
        try:
            return ipaddress.ip_address(wanted) == address
        except ValueError:
            return False
    wanted = wanted.removeprefix("*")
    if not wanted:
        return False
    return host.endswith(wanted) if wanted.startswith(".") else host == wanted or host.endswith(f".{wanted}")
