"""Average models of one architecture: read their headers, choose the coefficients, stream the mean."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.soup.config import SoupConfig
from ladle.soup.preflight import Soup, open_soup
from ladle.soup.select import Scorer, select
from ladle.soup.weights import Coefficients, make_coefficients
from ladle.soup.writer import SELECTION, write_soup
from ladle.stage import Inputs, StageResult

logger = get_logger(__name__)


def run(config: SoupConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write the soup of `inputs["members"]`, oldest first, as a model folder.

    Args:
        config: the method, what to select by, and the accepted differences.
        inputs: `members`: model folders; `validation`: the held-out mixture, where the soup is selected.
        out: the artifact's folder.
    """
    soup = open_soup(inputs["members"], config)
    coefficients, selection = _choose(soup, config, inputs, out)
    info = write_soup(soup, coefficients, out, selection, is_private=True)
    shutil.rmtree(out / SELECTION, ignore_errors=True)
    _say(info)
    output_hashes = {name: entry["blake3"] for name, entry in info["outputs"].items()}
    counters, metrics = _summary(info)
    return StageResult(counters, metrics, input_hashes=_input_hashes(soup, info), output_hashes=output_hashes)


def _choose(soup: Soup, config: SoupConfig, inputs: Inputs, out: Path) -> tuple[Coefficients, dict[str, Any] | None]:
    if config.select == "none":
        return make_coefficients(config, len(soup.members)), None
    if not inputs.get("validation"):
        raise UserError(
            f"soup.select is {config.select}, and there is no validation data",
            "give the mix a validation split, or set select=none",
        )
    from ladle.training.pretrain import validation_loss  # brings torch, which averaging does without

    evaluate_loss = partial(validation_loss, data_dir=inputs["validation"][0])
    return select(soup, config, Scorer(soup, evaluate_loss, out / SELECTION))


def _say(info: dict[str, Any]) -> None:
    tensors = info["tensors"]
    shares = ", ".join(f"{member['coefficient']} {member['name']}" for member in info["members"])
    logger.info("soup: %s (%s)", shares, info["method"])
    logger.info(
        "soup: %d tensors averaged, %d equal in all members, %d copied from the first, %d left out",
        *(tensors["averaged"], tensors["equal_in_all"], len(tensors["copied_from_first"]), len(tensors["dropped"])),
    )
    for waiver, entry in info["waived"].items():
        logger.warning("soup: %s accepts %d differences: %s", waiver, entry["count"], "; ".join(entry["first"]))


def _input_hashes(soup: Soup, info: dict[str, Any]) -> dict[str, str]:
    """Return the blake3 of the members' files by path, as they were read."""
    return {
        str(member.folder / file): entry["blake3"]
        for member, described in zip(soup.members, info["members"], strict=True)
        for file, entry in described["files"].items()
        if entry["blake3"]
    }


def _summary(info: dict[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    tensors = info["tensors"]
    counters = {
        "members": len(info["members"]),
        "tensors_averaged": tensors["averaged"],
        "tensors_equal_in_all": tensors["equal_in_all"],
        "tensors_copied_from_first": len(tensors["copied_from_first"]),
        "tensors_dropped": len(tensors["dropped"]),
        "elements_averaged": tensors["elements_averaged"],
        "elements_not_finite": tensors["elements_not_finite"],
        "bytes_written": sum(entry["size_bytes"] for entry in info["outputs"].values()),
    }
    metrics: dict[str, Any] = {"shares": {member["name"]: member["coefficient"] for member in info["members"]}}
    if info["selection"]:
        metrics |= {"validation_loss": info["selection"]["loss"], "candidates": info["selection"]["candidates"]}
    return counters, metrics
