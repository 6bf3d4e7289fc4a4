"""Choosing a soup by its loss on held-out data: greedy, or the best of several candidates.

Greedy (arXiv 2203.05482): order the members by their own loss, best first; take each in turn into a uniform average,
and keep it only if the average's loss falls. The loss is that of a validation split, never of the benchmarks that are
reported: a soup chosen by a score cannot be compared by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladle.artifacts.files import canonical_json, hash_bytes, pretty_json, write_text_durably
from ladle.errors import CheckFailed
from ladle.log import get_logger
from ladle.soup.config import SoupConfig
from ladle.soup.plan import plan_output
from ladle.soup.preflight import Soup
from ladle.soup.weights import Coefficients, make_coefficients, over
from ladle.soup.writer import describe_plan, write_candidate

EvaluateLoss = Callable[[Path], float]

logger = get_logger(__name__)


class Scorer:
    """Knows the loss of every average that was tried; a killed run's losses are read back instead of computed again.

    Args:
        soup: the members.
        evaluate_loss: the loss of a model folder, the same on every call.
        folder: where one candidate at a time is written, and the losses are kept.
    """

    def __init__(self, soup: Soup, evaluate_loss: EvaluateLoss, folder: Path) -> None:
        self.soup, self.evaluate_loss, self.folder = soup, evaluate_loss, folder
        self.tried: list[dict[str, Any]] = []
        self.losses_file = folder / f"losses-{_members_key(soup)}.json"
        self.losses: dict[str, float] = json.loads(self.losses_file.read_text()) if self.losses_file.is_file() else {}

    def __call__(self, name: str, coefficients: Coefficients) -> float:
        """Return the loss of an average, and note it under `name`.

        Raises:
            CheckFailed: the loss is not a number.
        """
        shares = coefficients.as_text()
        key = " ".join(shares)
        if key not in self.losses:
            loss = self._evaluate(coefficients)
            if not math.isfinite(loss):
                raise CheckFailed(f"soup candidate {name} has validation loss {loss}")
            self.losses[key] = loss
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_durably(self.losses_file, pretty_json(self.losses))
        loss = self.losses[key]
        logger.info("soup candidate %s: validation loss %.6f", name, loss)
        self.tried.append({"name": name, "shares": shares, "loss": loss})
        return loss

    def _evaluate(self, coefficients: Coefficients) -> float:
        if len(coefficients.used) == 1:
            return float(self.evaluate_loss(self.soup.members[coefficients.used[0]].folder))
        candidate = self.folder / "candidate"
        write_candidate(self.soup, coefficients, candidate)
        return float(self.evaluate_loss(candidate))


def select(soup: Soup, config: SoupConfig, scorer: Scorer) -> tuple[Coefficients, dict[str, Any]]:
    """Return the coefficients with the lowest loss, and the table of all that were tried.

    Args:
        soup: the members.
        config: `select` and `candidates`.
        scorer: tells an average's loss.
    """
    names = ["greedy"] if config.select == "greedy" else list(config.candidates)
    found = [candidate for name in names for candidate in _candidates(name, soup, config, scorer)]
    chosen, coefficients, loss = min(found, key=lambda candidate: candidate[2])  # the first of equals
    return coefficients, {"by": config.select, "chosen": chosen, "loss": loss, "candidates": scorer.tried}


def _candidates(name: str, soup: Soup, config: SoupConfig, scorer: Scorer) -> list[tuple[str, Coefficients, float]]:
    """Score the candidates that one name stands for."""
    count = len(soup.members)
    if name == "greedy":
        coefficients = _greedy(soup, scorer)
        return [("greedy", coefficients, scorer("greedy", coefficients))]
    if name == "last":
        named = {"last": over([count - 1], count)}
    elif name == "last_n":
        sizes = (
            [config.last] if config.last else [2**power for power in range(1, count.bit_length()) if 2**power < count]
        )
        named = {f"last_{size}": over(list(range(count - size, count)), count) for size in sizes}
    else:
        named = {name: make_coefficients(config.model_copy(update={"method": name}), count)}
    return [(label, coefficients, scorer(label, coefficients)) for label, coefficients in named.items()]


def _greedy(soup: Soup, scorer: Scorer) -> Coefficients:
    count = len(soup.members)
    alone = {j: scorer(f"only {member.name}", over([j], count)) for j, member in enumerate(soup.members)}
    first, *others = sorted(alone, key=lambda j: (alone[j], -j))
    kept, best = [first], alone[first]
    for position in others:
        trial = sorted([*kept, position])
        loss = scorer("greedy: " + " + ".join(soup.members[j].name for j in trial), over(trial, count))
        if loss < best:
            kept, best = trial, loss
    return over(kept, count)


def _members_key(soup: Soup) -> str:
    coefficients = over(list(range(len(soup.members))), len(soup.members))
    plan = describe_plan(soup, coefficients, plan_output(soup.members, soup.comparison, coefficients.used))
    return hash_bytes(canonical_json(plan).encode())[:16]
