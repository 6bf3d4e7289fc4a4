"""What a KTO training needs of its data and its reference model: `<split>/` with token ids and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator

from ladle.checkup import Checkup, Finding
from ladle.stage import Stage, deferred

run = deferred("ladle.kto.reference:run")


def check(check: Checkup) -> Iterator[Finding]:
    """Yield what the preference data holds; whether one label is enough is this stage's to say."""
    preference = check.parent("preference")
    if preference is not None:
        from ladle.data.before import check_preference

        yield from check_preference(Checkup(preference, check.machine), check.config.allow_single_label)


STAGE = Stage("kto_reference", run, version=5, wants_gpus=True, check=check)
