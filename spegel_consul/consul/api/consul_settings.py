"""``ConsulSettings``: the address, credentials and TLS files of the agent, from Consul's environment variables.

The rules are those of Consul's Go client (api.NewClient), because operators and Nomad set these variables for it: one
environment must mean the same to ``consul kv get`` and to this program.  There are two intended differences: the token
file is read again when it changes, and the error for a bad value names its variable.

A new environment variable of Consul, or a rule about one, belongs here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from urllib.parse import urlsplit

from spegel_consul.http.client_tls import ClientTls
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import in_url

DEFAULT_ADDRESS = "127.0.0.1:8500"

_TEXTS = {
    "CONSUL_HTTP_TOKEN": "token",
    "CONSUL_HTTP_TOKEN_FILE": "token_file",
    "CONSUL_CACERT": "cafile",
    "CONSUL_CAPATH": "capath",
    "CONSUL_CLIENT_CERT": "client_cert",
    "CONSUL_CLIENT_KEY": "client_key",
    "CONSUL_TLS_SERVER_NAME": "tls_server_name",
    "CONSUL_NAMESPACE": "namespace",
    "CONSUL_PARTITION": "partition",
}


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """One agent's address, credentials and TLS material. Paths are not opened before a client is built."""

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int | None = 8500
    """None for the default port of the scheme."""
    uds: str | None = None
    """Path of a unix socket; then ``host`` and ``port`` are used only for the Host header."""
    path_prefix: str = ""
    """Path of the agent behind a reverse proxy, such as ``/consul``."""
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    basic_auth: tuple[str, str] | None = field(default=None, repr=False)
    cafile: str | None = None
    capath: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    tls_server_name: str | None = None
    verify: bool = True
    namespace: str | None = None
    partition: str | None = None

    @classmethod
    def from_address(cls, address: str, *, tls: bool = False) -> ConsulSettings:
        """``host``, ``host:port``, ``[v6]:port``, ``http(s)://host[:port][/prefix]`` or ``unix:///path``.

        ``tls`` asks for HTTPS if the address does not begin with ``https://``.
        Raises ValueError.
        """
        scheme, separator, rest = address.partition("://")
        if not separator:
            scheme, rest = "http", address
        elif scheme == "unix":
            if not rest.startswith("/"):
                raise ValueError(f"{address!r}: a unix socket needs an absolute path (unix:///run/consul.sock)")
            return cls(host="localhost", port=None, uds=rest)
        elif scheme not in ("http", "https"):
            raise ValueError(f"{address!r}: unknown scheme {scheme!r} (http, https or unix)")
        netloc, _, path = rest.partition("/")
        parts = urlsplit("//" + netloc)
        try:
            host, port = parts.hostname, parts.port
        except ValueError as why:
            raise ValueError(f"{address!r}: {why}") from None
        if not host or parts.username is not None or (netloc.count(":") > 1 and not netloc.startswith("[")):
            raise ValueError(f"{address!r}: not host[:port] (IPv6 in brackets, credentials elsewhere)")
        prefix = f"/{path.rstrip('/')}" if path.rstrip("/") else ""
        return cls(scheme="https" if tls else scheme, host=host, port=port, path_prefix=prefix)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> ConsulSettings:
        """From ``CONSUL_*``; empty means unset. ValueError names the variable that can't be used."""
        try:
            settings = cls.from_address(
                env.get("CONSUL_HTTP_ADDR") or DEFAULT_ADDRESS, tls=_flag(env, "CONSUL_HTTP_SSL", False)
            )
        except ValueError as why:
            raise why if str(why).startswith("CONSUL_") else ValueError(f"CONSUL_HTTP_ADDR: {why}") from None
        texts = {name: env[variable] for variable, name in _TEXTS.items() if env.get(variable)}
        settings = replace(settings, verify=_flag(env, "CONSUL_HTTP_SSL_VERIFY", True), **texts)  # type: ignore[arg-type]
        if auth := env.get("CONSUL_HTTP_AUTH"):
            user, _, password = auth.partition(":")
            settings = replace(settings, basic_auth=(user, password))
        settings.tls.check()
        return settings

    @property
    def base_url(self) -> str:
        """Scheme, host, port and prefix, without a trailing slash."""
        return f"{self.scheme}://{in_url(self.host)}{'' if self.port is None else f':{self.port}'}{self.path_prefix}"

    @property
    def tls(self) -> ClientTls:
        """The TLS files, which are not opened yet."""
        return ClientTls("CONSUL", self.cafile, self.capath, self.client_cert, self.client_key, self.verify)


def _flag(env: Mapping[str, str], variable: str, default: bool) -> bool:
    """Go's strconv.ParseBool, not more lenient, because both clients must read a value alike."""
    text = env.get(variable)
    if not text:
        return default
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f"{variable}: {text!r} is not a boolean (true or false)")
