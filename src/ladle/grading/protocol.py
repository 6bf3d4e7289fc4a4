"""What a grading worker says besides verdicts; one JSON value a line."""

from __future__ import annotations

READY = "ready"
"""It waits for pairs, or goes on with the one it is at."""
LOADING = "loading"
"""It loads libraries, which takes its time and is not charged to the answer it is at."""
