"""``ClientTls``: the TLS files of a client of Consul or of Nomad, from their environment variables.

Both have the same variables behind their names, and the rules are those of their Go clients: ``CACERT`` replaces
``CAPATH``, either replaces the system's authorities, and a certificate needs its key. An error names the variable.

A new rule about the contents of these files belongs here; the time at which they are read again belongs to
:mod:`spegel_consul.http.followed_context`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from spegel_consul.disk import foreign_files, pem
from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class ClientTls:
    """The files that the variables of ``program`` name, such as ``CONSUL_CACERT`` for ``CONSUL``.

    ``verify``: whether the server's certificate is verified. No file is opened before it is needed.
    """

    program: str
    cafile: str | None = None
    capath: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    verify: bool = True

    def check(self) -> None:
        """Raises ValueError for one half of a pair; it names the variable that is missing."""
        if bool(self.client_cert) != bool(self.client_key):
            missing = "KEY" if self.client_cert else "CERT"
            raise ValueError(
                f"{self.program}_CLIENT_{missing}: not set, but a client certificate needs both certificate and key"
            )

    @property
    def trusted(self) -> str:
        """The authorities, for people."""
        if self.cafile:
            return f"{self.program}_CACERT, {self.cafile}"
        if self.capath:
            return f"{self.program}_CAPATH, {self.capath}"
        return f"an authority that this system trusts; {self.program}_CACERT names another"

    def paths(self) -> list[Path]:
        """The files that exist now."""
        below = sorted(Path(self.capath).rglob("*")) if self.capath and not self.cafile else []
        single = (self.client_cert, self.client_key, self.cafile)
        return [*(Path(path) for path in single if path), *below]

    def context(self) -> ssl.SSLContext:
        """The client side of TLS. ValueError names the variable whose file can't be used."""
        context = pem.as_go_verifies(ssl.create_default_context(cadata=self._authorities()))
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.client_cert and self.client_key:
            try:
                pem.load_pair(context, self.client_cert, self.client_key)
            except (OSError, ValueError) as why:
                variables = f"{self.program}_CLIENT_CERT, {self.program}_CLIENT_KEY"
                raise ValueError(f"{variables}: {self.client_cert}: {in_words(why)}") from why
        return context

    def _authorities(self) -> str | None:
        """The PEM text of the file, or of all files below the directory, because Go reads files of any name."""
        if self.cafile:
            return _certificates(f"{self.program}_CACERT", Path(self.cafile))
        if not self.capath:
            return None
        variable = f"{self.program}_CAPATH"
        try:
            found = sorted(path for path in Path(self.capath).rglob("*") if path.is_file())
            next(Path(self.capath).iterdir(), None)
        except OSError as why:
            raise ValueError(f"{variable}: {self.capath}: {in_words(why)}") from why
        if not found:
            raise ValueError(f"{variable}: {self.capath}: no files in it")
        return "".join(_certificates(variable, path) for path in found)


def _certificates(variable: str, path: Path) -> str:
    try:
        text = foreign_files.read(path, pem.SIZE).decode("ascii", "ignore")  # ignore, because of comments
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError) as why:
        raise ValueError(f"{variable}: {path}: no certificates in PEM form") from why
    except OSError as why:
        raise ValueError(f"{variable}: {path}: {in_words(why)}") from why
    return text if text.endswith("\n") else text + "\n"
