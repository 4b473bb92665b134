"""The fixtures of `tests/e2e`: a shared service, and a way to start others."""

from tests.e2e.conftest import client, service, start

__all__ = ["client", "service", "start"]
