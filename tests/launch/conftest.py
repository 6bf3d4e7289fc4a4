"""Fixtures of the launch tests: the stand-in Hub and its client."""

from __future__ import annotations

from tests.hub.conftest import client, hub  # noqa: F401 - fixtures of the tests here
