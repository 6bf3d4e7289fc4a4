"""A packed row's logits against those of its documents alone.

Tolerance 1e-5 on float32 logits of magnitude about 1: sums over another number of keys round differently. Without
isolation the difference is of the order of the logits themselves, which the second test shows on the same rows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ladle.data.store import MixedDataset
from ladle.stages import mix
from tests.tiny_models import SHAPES
from tests.unit.data.samples import make_config, make_texts, save_tokenizer, write_texts


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> MixedDataset:
    folder = tmp_path_factory.mktemp("mix")
    (folder / "out").mkdir()
    config = make_config({"a": 1.0}, budget={"tokens": 4000}, sequence_length=192)
    inputs = {
        "tokenizer": [save_tokenizer(folder / "tokenizer")],
        "source:a": [write_texts(folder / "a.jsonl", make_texts(1, 300, longest=40))],
    }
    mix.run(config, inputs, folder / "out")
    return MixedDataset(folder / "out")


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    fields = dict(SHAPES[request.param])
    config = AutoConfig.for_model(fields.pop("model_type"), vocab_size=400, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():  # at the usual size of random weights, logits are near 0 and so is any leak
        parameter.data.mul_(2)
    return model


def logits_of(model: PreTrainedModel, tokens: np.ndarray, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens)[None], use_cache=False, **inputs).logits[0]


def alone(model: PreTrainedModel, tokens: np.ndarray, lengths: list[int]) -> torch.Tensor:
    stops = np.cumsum(lengths)
    return torch.cat(
        [logits_of(model, tokens[stop - length : stop]) for stop, length in zip(stops, lengths, strict=True)]
    )


def test_documents_in_a_row_do_not_see_each_other(mixed: MixedDataset, model: PreTrainedModel):
    compared = 0
    for index in range(0, len(mixed), 3):
        row, lengths = mixed[index], mixed.lengths_of_row(index)
        packed = logits_of(model, row["input_ids"], position_ids=torch.from_numpy(row["position_ids"])[None])
        expected = alone(model, row["input_ids"], lengths)
        assert (packed[: sum(lengths)] - expected).abs().max() <= 1e-5
        compared += len(lengths) > 2
    assert compared >= 5


def test_without_positions_they_would(mixed: MixedDataset, model: PreTrainedModel):
    row, lengths = mixed[0], mixed.lengths_of_row(0)
    leaking = logits_of(model, row["input_ids"])
    assert (leaking[: sum(lengths)] - alone(model, row["input_ids"], lengths)).abs().max() > 1e-2
