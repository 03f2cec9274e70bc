"""The fixtures of tests that download."""

from tests.servers import root, server, sleeps, tls_server  # noqa: F401
