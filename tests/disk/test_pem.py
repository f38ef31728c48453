"""Contexts for TLS verify alike on all Pythons."""

from __future__ import annotations

import ssl

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.disk.pem import as_go_verifies, client_context


def test_chains_without_a_key_identifier_are_accepted_on_all_pythons() -> None:
    """The strict mode is Python 3.13's default; a chain without the identifier is in tests/join/test_sources.py."""
    strict = ssl.create_default_context()
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    for context in (as_go_verifies(strict), client_context(None), ConsulSettings().tls.context()):
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
