"""What the report page is given."""

from __future__ import annotations

from ladle.config import Config


class PageConfig(Config):
    """The page of one run."""

    title: str
