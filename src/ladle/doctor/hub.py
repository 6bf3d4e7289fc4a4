"""Are the models and datasets there: on this machine, or on the Hub (or its mirror) and open to us."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ladle.doctor.finding import Finding, error, guarded, ok, warning
from ladle.doctor.references import OWN_MODELS, Reference
from ladle.evaluation.benchmark import builtin_benchmarks
from ladle.hub import endpoint, is_commit, resolve_commit, size_of

FAMILY = "hub"


def check_references(references: list[Reference]) -> Iterator[Finding]:
    """Yield a finding for each reference."""
    for reference in references:
        yield from guarded(FAMILY, reference.key, lambda one=reference: _check(one))


def _meant(reference: Reference) -> str:
    """Return which name of the recipe, or of a built-in benchmark, was most likely meant; empty if none is near."""
    section, _, last = reference.key.rpartition(".")
    if section == "evaluate.benchmarks":
        name, known = last, list(builtin_benchmarks())
    else:
        name, known = reference.name, list(OWN_MODELS) if reference.kind == "model" else []
    close = difflib.get_close_matches(name, [one for one in known if one != name], n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _check(reference: Reference) -> Iterator[Finding]:
    if reference.paths:
        yield ok("data" if reference.kind == "dataset" else "model", reference.key, f"{reference.name} is here")
        return
    if reference.repo_id is None:
        yield error(
            "data" if reference.kind == "dataset" else "model",
            reference.key,
            f"there is no {reference.kind} at {reference.name}",
            _meant(reference) or f"name an existing path or glob, or a Hub id org/name, for {reference.key}",
        )
        return
    commit = resolve_commit(reference.kind, reference.repo_id, reference.revision)
    size = size_of(reference.kind, reference.repo_id, commit, reference.file)
    where = f"{reference.repo_id}@{commit[:12]}"
    how = "in the cache" if size is None else f"{size / 1e9:,.2f} GB on {endpoint()}"
    if reference.revision is None or not is_commit(reference.revision):
        yield warning(
            FAMILY,
            reference.key,
            f"{where} ({how}) is what {reference.revision or 'the default branch'} stands for today",
            f"pin it, so that a later run is the same: revision: {commit}",
        )
    else:
        yield ok(FAMILY, reference.key, f"{where}, {how}")
