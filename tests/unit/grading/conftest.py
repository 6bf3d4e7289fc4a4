from __future__ import annotations

from collections.abc import Iterator

import pytest

from ladle.grading.grade import Grader


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    """One grader for all tests that need no settings of their own: its worker starts once."""
    with Grader() as grader:
        yield grader
