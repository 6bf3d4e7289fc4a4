"""Packed rows cut into runs of whole documents get the attention, and the gradients, of the whole masked row."""

from __future__ import annotations

import pytest
import torch

from ladle.training.attention import RUN, run_sizes, use_fused_attention
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


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", [[[40, 260, 120, 180]], [[600], [1, 299, 300]], [[200], [150, 50]]])
def test_logits_and_gradients_are_those_of_sdpa(name, rows):
    shape, changes = SHAPES[name]
    model = make_model(shape, **changes)
    ids = torch.randint(2, 320, (len(rows), sum(rows[0])))
    position_ids = torch.stack([packed(lengths) for lengths in rows])
    found = []
    for fused in (False, True):
        if fused:
            use_fused_attention(model)
            assert model.config._attn_implementation == "packed_sdpa"
        model.zero_grad()
        logits = model(input_ids=ids, position_ids=position_ids, use_cache=False).logits
        logits.logsumexp(-1).mean().backward()
        found.append((logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=2e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_an_attention_that_was_chosen_stays():
    model = make_model("qwen3")
    model.set_attn_implementation("eager")
    use_fused_attention(model)
    assert model.config._attn_implementation == "eager"
