from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from ladle.generation.request import Request, Sample, cut_at_stop, make_sample, mean_entropy, stop_token_ids
from ladle.generation.transformers_backend import TransformersGenerator
from tests.tiny_models import SHAPES, make_model, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return make_model("qwen3")


@pytest.fixture
def requests() -> list[Request]:
    rng = random.Random(5)
    return [
        Request(
            str(n), [rng.randrange(2, 320) for _ in range(rng.randint(1, 30))], n, rng.randint(1, 25), temperature=1.0
        )
        for n in range(40)
    ]


def _tokens(model, tokenizer, requests, **arguments):
    generator = TransformersGenerator(model, tokenizer, **arguments)
    return {sample.id: sample.token_ids for sample in generator.generate(requests)}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_does_not_depend_on_batch_order_or_prefill(shape, tokenizer, requests):
    model = make_model(shape)
    expected = _tokens(model, tokenizer, requests, batch_size=16)
    assert _tokens(model, tokenizer, requests, batch_size=1) == expected
    assert _tokens(model, tokenizer, requests[::-1], batch_size=7, prefill_tokens=1) == expected


def test_every_request_gets_one_sample_of_at_most_its_length(model, tokenizer, requests):
    samples = list(TransformersGenerator(model, tokenizer, batch_size=4).generate(iter(requests)))
    assert sorted(sample.id for sample in samples) == sorted(request.id for request in requests)
    limits = {request.id: request.max_new_tokens for request in requests}
    for sample in samples:
        assert 1 <= len(sample.token_ids) <= limits[sample.id]
        if sample.finish_reason == "length":
            assert len(sample.token_ids) == limits[sample.id]
        else:
            assert sample.token_ids[-1] == tokenizer.eos_token_id


def test_samples_come_as_they_finish(model, tokenizer):
    lengths = [3, 30, 3, 3, 3, 3]
    requests = [Request(str(n), [5, 6], n, length, temperature=0) for n, length in enumerate(lengths)]
    names = [sample.id for sample in TransformersGenerator(model, tokenizer, batch_size=2).generate(requests)]
    assert names[-1] == "1"  # the long one is last, though it was started first


def test_equal_prompts_with_their_own_seeds_differ(model, tokenizer):
    requests = [Request(str(seed), [7, 8, 9], seed, 12, temperature=1.0) for seed in range(8)]
    assert len({tuple(tokens) for tokens in _tokens(model, tokenizer, requests).values()}) == 8


def test_no_requests(model, tokenizer):
    assert list(TransformersGenerator(model, tokenizer).generate([])) == []


def test_stop_texts_cut_where_they_first_appear(model, tokenizer, requests):
    free = list(TransformersGenerator(model, tokenizer).generate(requests))
    texts = {sample.id: sample.text for sample in free}
    stop = tuple(sorted({text[len(text) // 2 :][:2] for text in texts.values() if len(text) > 8}))[:6]
    stopped = {
        sample.id: sample
        for sample in TransformersGenerator(model, tokenizer, batch_size=5).generate(
            [replace(request, stop=stop) for request in requests]
        )
    }
    cut = 0
    for name, text in texts.items():
        places = [place for end in stop if (place := text.find(end)) >= 0]
        assert stopped[name].text == (text[: min(places)] if places else text)
        if places:
            cut += 1
            assert stopped[name].finish_reason == "stop"
            # The token that completed the stop text is the last one kept.
            kept = stopped[name].token_ids
            assert not any(end in tokenizer.decode(kept[:-1], skip_special_tokens=True) for end in stop)
    assert cut >= 6


@pytest.mark.parametrize("fault", [None, "none"])  # with one, transformers' generate makes the completions
def test_the_entropy_of_a_sample_is_that_of_its_own_tokens(model, tokenizer, requests, fault):
    generator = TransformersGenerator(model, tokenizer, batch_size=5)
    generator.fault = fault
    wanted = [replace(one, temperature=0.7, top_p=0.9, stop=("a", "1")) for one in requests[:12]]
    for sample in list(generator.generate(wanted)):
        request = wanted[int(sample.id)]
        ids = torch.tensor([request.prompt_ids + sample.token_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(request.prompt_ids) - 1 : -1].double()
        expected = torch.distributions.Categorical(logits=logits / 0.7).entropy().mean().item()
        assert sample.entropy == pytest.approx(expected, rel=1e-5)
    greedy = list(generator.generate([replace(one, temperature=0) for one in wanted]))
    assert {one.entropy for one in greedy} == {mean_entropy(greedy)} == {None}


def test_the_mean_entropy_weighs_samples_by_their_tokens():
    samples = [Sample("a", [1], "", "eos", 3.0), Sample("b", [1, 2], "", "eos", 1.5)]
    assert mean_entropy(samples) == 2
    assert mean_entropy([*samples, Sample("c", [1], "", "eos")]) is None
    assert mean_entropy([]) is None


def test_a_passed_model_is_given_back_as_it_was(model, tokenizer, requests):
    model.train()
    before = model.config._attn_implementation
    _tokens(model, tokenizer, requests[:3])
    assert model.config._attn_implementation == before
    assert model.training
    loss = model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()  # nothing of inference mode is left in the model
    model.zero_grad()
    model.eval()


class TestStopIds:
    def test_both_eos_of_a_chat_model(self, tokenizer):
        chat = make_tokenizer()
        chat.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        chat.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        )
        end = chat.convert_tokens_to_ids("<|im_end|>")
        assert stop_token_ids(None, chat) == sorted({chat.eos_token_id, end})
        assert stop_token_ids([5, 6], tokenizer) == sorted({5, 6, tokenizer.eos_token_id})

    def test_the_token_that_a_template_ends_a_turn_with(self):
        chat = make_tokenizer()
        chat.add_special_tokens({"additional_special_tokens": ["<turn_end>", "<turn>"]})
        chat.chat_template = "{% for m in messages %}<turn>{{ m['content'] }}<turn_end>{% endfor %}"
        assert chat.convert_tokens_to_ids("<turn_end>") in stop_token_ids(None, chat)
        assert chat.convert_tokens_to_ids("<turn>") not in stop_token_ids(None, chat)

    def test_of_several_templates_each_is_asked_and_one_that_refuses_the_turns_is_passed_over(self):
        chat = make_tokenizer()
        chat.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
        turns = "{% for m in messages %}{{ m['content'] }}<END>{% endfor %}"
        chat.chat_template = {
            "tool_use": turns.replace("<END>", "<a>"),
            "rag": "{{ raise_exception('no documents') }}",
            "plain": turns.replace("<END>", "<b>"),
        }
        assert stop_token_ids(None, chat) == sorted({chat.eos_token_id, *chat.convert_tokens_to_ids(["<a>", "<b>"])})


def test_cut_keeps_the_fewest_tokens(tokenizer):
    ids = tokenizer.encode("The answer is 12.\nQuestion: 3 plus 4?", add_special_tokens=False)
    cut = cut_at_stop(tokenizer, ids, ("\nQuestion:", "zzz"))
    assert cut is not None
    assert cut[1] == "The answer is 12."
    assert "\nQuestion:" in tokenizer.decode(cut[0])
    assert "\nQuestion:" not in tokenizer.decode(cut[0][:-1])
    assert cut_at_stop(tokenizer, ids, ("zzz",)) is None


def test_a_special_token_can_be_a_stop_text_and_an_end_token_is_no_stop_text(tokenizer):
    ids = tokenizer.encode("It is 12.", add_special_tokens=False)
    special, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    request = Request("a", [1], 0, 99, stop=(tokenizer.pad_token, tokenizer.eos_token))
    assert make_sample(request, [*ids, special, *ids], [eos], tokenizer) == Sample(
        "a", [*ids, special], "It is 12.", "stop"
    )
    assert make_sample(request, [*ids, eos], [eos], tokenizer) == Sample("a", [*ids, eos], "It is 12.", "eos")
    assert make_sample(request, ids, [eos], tokenizer) == Sample("a", ids, "It is 12.", "length")
