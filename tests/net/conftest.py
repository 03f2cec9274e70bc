"""The fixtures of tests that download."""

from tests.servers import root, s3, s3_server, server, sleeps, tls_server  # noqa: F401
