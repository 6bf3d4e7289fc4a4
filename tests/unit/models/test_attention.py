"""Packed rows have no mask, and get the attention and gradients of the masked row, cut into runs or documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ladle.errors import UserError
from ladle.models.attention import RUN, attention_choices, document_borders, document_sdpa, document_sizes, run_sizes
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.packed_rows import collate_packed
from tests.tiny_models import make_model


def document_mask(lengths: list[int]) -> torch.Tensor:
    """What each position of a row sees, (positions, positions)."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (document[:, None] == document[None]) & torch.ones(len(document), len(document)).tril().bool()


def packed(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([600], [600]),
        ([300, 300], [300, 300]),
        ([100, 100, 100, 20], [300, 20]),
        ([RUN, 1], [RUN, 1]),
        ([RUN - 1, 1, 5], [RUN, 5]),
        ([1] * 600, [RUN, RUN, 600 - 2 * RUN]),
    ],
)
def test_runs_are_whole_documents_of_enough_tokens(lengths, sizes):
    assert run_sizes(document_mask(lengths)) == sizes


# values narrower than queries, as wide, and wider; grouped keys and values
SHAPES = {
    "narrow values": ("deepseek_v3", {"v_head_dim": 12}),
    "equal": ("deepseek_v3", {}),
    "wide values": ("deepseek_v3", {"v_head_dim": 24}),
    "grouped": ("qwen3", {}),
}


@pytest.mark.parametrize("implementation", ["packed_sdpa", "document_sdpa"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", [[[40, 260, 120, 180]], [[600], [1, 299, 300]], [[200], [150, 50]]])
def test_logits_and_gradients_are_those_of_sdpa(name, rows, implementation):
    shape, changes = SHAPES[name]
    model = make_model(shape, **changes)
    ids = torch.randint(2, 320, (len(rows), sum(rows[0])))
    position_ids = torch.stack([packed(lengths) for lengths in rows])
    found = []
    for fused in (False, True):
        if fused:
            model.set_attn_implementation(implementation)
        model.zero_grad()
        logits = model(input_ids=ids, position_ids=position_ids, use_cache=False).logits
        logits.logsumexp(-1).mean().backward()
        found.append((logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=2e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_documents_are_as_long_as_their_positions_say():
    for lengths in ([7], [1, 1], [3, 1, 5]):
        assert document_sizes(packed(lengths)) == lengths


@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_documents_by_position_leave_padding_masks_and_windows_alone(shape):
    changes = {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 0} if shape == "qwen3" else {}
    model = make_model(shape, **changes).eval()
    ids = torch.randint(2, 320, (2, 30))
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    packed_row = {"input_ids": ids[:1], "position_ids": packed([18, 12])[None]}
    batches = [{"input_ids": ids, "attention_mask": mask}, {"input_ids": ids}, packed_row]
    expected = [model(**batch, use_cache=False).logits for batch in batches]
    model.set_attn_implementation("document_sdpa")
    found = [model(**batch, use_cache=False).logits for batch in batches]
    torch.testing.assert_close(found[0][1, 11:], expected[0][1, 11:], rtol=0, atol=2e-6)
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=2e-6)


def test_a_model_that_hides_its_positions_is_refused():
    tensor = torch.zeros(1, 1, 3, 4)
    with pytest.raises(UserError, match="is not given position_ids"):
        document_sdpa(torch.nn.Identity(), tensor, tensor, tensor, None)


def test_an_attention_that_was_chosen_stays():
    model = make_model("qwen3")
    model.set_attn_implementation("eager")
    assert attention_choices(model) == attention_choices(model, each_document=True) == ["eager"]


def batch() -> dict[str, Any]:
    tokens = np.arange(2, 14)
    row = {"input_ids": tokens, "position_ids": np.array([*range(5), *range(7)]), "labels": tokens, "row": 3}
    return collate_packed([row, row])


def test_rows_are_stacked_with_their_documents_borders_and_nothing_else_is_passed_on():
    rows = batch()
    borders = {name: rows.pop(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")}
    assert {name: tuple(tensor.shape) for name, tensor in rows.items()} == dict.fromkeys(
        ("input_ids", "position_ids", "labels"), (2, 12)
    )
    for ends in (borders["cu_seq_lens_q"], borders["cu_seq_lens_k"]):
        assert (ends.dtype, ends.tolist()) == (torch.int32, [0, 5, 12, 17, 24])
    assert borders["max_length_q"] == borders["max_length_k"] == 7
    cut = document_borders(torch.tensor([[3, 4, 0, 1], [0, 1, 2, 3]]))  # a row may begin inside a document
    assert cut["cu_seq_lens_q"].tolist() == [0, 2, 4, 8]


def test_a_mask_beside_restarting_positions_is_refused():
    model = make_model("qwen3")
    use_linear_cross_entropy(model)
    assert model(**batch()).loss.isfinite()
    with pytest.raises(UserError, match="2 documents begin inside its rows.*collate_packed"):
        model(**batch(), attention_mask=torch.ones(2, 12))


def test_a_mask_over_rows_of_one_document_is_not():
    model = make_model("qwen3")
    use_linear_cross_entropy(model)
    whole = batch() | {"position_ids": torch.arange(12).expand(2, 12)}
    assert model(**whole, attention_mask=torch.ones(2, 12)).loss.isfinite()
