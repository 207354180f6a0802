"""Fixtures of the conformance tests."""

from tests.llmrank.conftest import one_quiet_thread

__all__ = ["one_quiet_thread"]
