"""Examples from rows, their labels' weights, and the bins that forward passes take them in."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ladle.errors import UserError
from ladle.kto.config import KtoConfig
from ladle.kto.data import SHARED_COST, KtoExamples, make_bin, plan_bins, tokenize_examples
from ladle.kto.loss import use_kto_forward
from ladle.kto.train import choose_weights
from ladle.models.chat import CHATML, set_template_date
from ladle.models.probe import can_share
from tests.tiny_models import make_model, make_tokenizer
from tests.unit.kto.samples import PAD_ID, examples_of, few_shot_examples, rows


def test_completions_end_with_eos_and_long_prompts_are_counted():
    tokenizer = make_tokenizer()
    long = {"prompt": "plus " * 300, "completion": "x", "label": True}
    examples, counters = tokenize_examples([*rows(4), long], tokenizer, max_length=64)
    assert counters == {"examples": 4, "dropped_long_prompts": 1, "cut_completions": 0}
    for index, row in enumerate(rows(4)):
        completion = examples.completion(index, index)
        assert completion[-1] == tokenizer.eos_token_id
        assert tokenizer.decode([*examples.prompt(index), *completion[:-1]]) == row["prompt"] + row["completion"]


def test_a_completion_is_cut_to_what_its_prompt_leaves_and_never_to_nothing():
    examples, counters = tokenize_examples(rows(8), make_tokenizer(), max_length=18)
    assert counters["cut_completions"] > 0
    for prompt in range(len(examples)):
        for completion in range(len(examples)):
            size = len(examples.completion(completion, prompt))
            assert 1 <= size <= 18 - len(examples.prompt(prompt))
            assert examples.lengths(np.array([prompt]), np.array([completion])) == len(examples.prompt(prompt)) + size


def test_examples_come_back_from_disk(tmp_path):
    examples = examples_of(5)
    examples.save(tmp_path)
    again = KtoExamples.load(tmp_path, examples.max_length)
    assert all((again.completion(i, j) == examples.completion(i, j)).all() for i in range(5) for j in range(5))


def test_equal_prompts_are_one_prompt():
    same = [{"prompt": "Question: 1?", "completion": str(i), "label": True} for i in range(3)]
    examples, _ = tokenize_examples([*same, *rows(1)], make_tokenizer(), 64)
    assert examples.prompt_of.tolist() == [0, 0, 0, 1]


def test_a_single_example_is_refused():
    with pytest.raises(UserError, match="at least two examples and has 1"):
        tokenize_examples(rows(1), make_tokenizer(), max_length=64)


CONVERSATION = {
    "prompt": [{"role": "user", "content": "1 plus 1?"}],
    "completion": [{"role": "assistant", "content": "2"}],
    "label": True,
}


def test_a_conversation_without_a_template_is_written_as_chatml():
    tokenizer = make_tokenizer()
    examples, _ = tokenize_examples([CONVERSATION, CONVERSATION], tokenizer, 128)
    assert tokenizer.decode(examples.prompt(0)) == "<|im_start|>user\n1 plus 1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(examples.completion(0, 0)).startswith("2<|im_end|>")
    assert tokenizer.chat_template is not None


def test_a_template_that_does_not_separate_prompt_and_completion_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="2 of 2 examples .* cannot be separated"):
        tokenize_examples([CONVERSATION, CONVERSATION], tokenizer, 128)


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def test_rows_that_the_template_refuses_are_counted_and_named_and_a_broken_template_is_one_error(caplog):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = NO_SYSTEM + CHATML
    system = CONVERSATION | {"prompt": [{"role": "system", "content": "Be brief."}, *CONVERSATION["prompt"]]}
    _, counts = tokenize_examples([CONVERSATION] * 300 + [system], tokenizer, 128)
    reason = "turns that the chat template refuses (System role not supported)"
    assert counts["examples"] == 300
    assert counts[f"bad: {reason}"] == 1
    assert f"1 of 301 examples are left out: 1 with {reason}; the first begins" in caplog.text
    with pytest.raises(UserError, match="2 of 4 examples cannot be written as tokens: 2 with turns .*max_bad_fraction"):
        tokenize_examples([CONVERSATION, system] * 2, tokenizer, 128)
    tokenizer.chat_template = "{% for m in messages %}\n{{ m.content }"
    with pytest.raises(UserError, match="the chat template is not one: line 2"):
        tokenize_examples([CONVERSATION, CONVERSATION], tokenizer, 128)


def test_what_was_lost_is_said_with_its_count(caplog):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    said = [f"<think>{thought}</think>5." for thought in ("one", "two")]
    both = [CONVERSATION | {"completion": [{"role": "assistant", "content": text}]} for text in said]
    both[1] |= {"label": False}
    empty = CONVERSATION | {"completion": [{"role": "assistant", "content": "<think>one</think>"}]}
    long = CONVERSATION | {"prompt": [{"role": "user", "content": "plus " * 200}], "label": False}
    _, counts = tokenize_examples([*both, empty, long], tokenizer, 128, max_bad_fraction=0.5)
    assert "2 of 4 examples are written without all of their assistant's content by the chat template" in caplog.text
    assert "2 of 4 examples are the same tokens as one with the other label" in caplog.text
    assert "1 of 4 examples are left out: their prompts do not fit kto.max_length=128 (1 are False)" in caplog.text
    assert counts["bad: a prompt or completion that is empty once it is tokens"] == 1
    tokenize_examples(rows(8), tokenizer, max_length=18)
    assert "lose the end of their completions to kto.max_length=18" in caplog.text


def test_a_template_that_writes_the_date_needs_one():
    tokenizer = make_tokenizer()
    dated = "{{ strftime_now('%d %b %Y') }} {% if strftime_now is defined %}{{ strftime_now(\"%A\") }}{% endif %}"
    tokenizer.chat_template = dated
    with pytest.raises(UserError, match="set kto.template_date"):
        set_template_date(tokenizer, None, "kto.template_date")
    set_template_date(tokenizer, "2024-07-26", "kto.template_date")
    assert tokenizer.apply_chat_template(CONVERSATION["prompt"], tokenize=False) == "26 Jul 2024 Friday"
    tokenizer.chat_template = "{{ strftime_now(form) }}"
    with pytest.raises(UserError, match="computes the form"):
        set_template_date(tokenizer, "2024-07-26", "kto.template_date")
    assert KtoConfig.model_validate({"template_date": date(2024, 7, 26)}).template_date == "2024-07-26"


def test_rollouts_of_another_tokenizer_and_texts_without_an_end_are_refused():
    tokenizer = make_tokenizer()
    row = {"prompt": "Question: 1 plus 1?", "completion": "1+1=2.", "label": True}
    ids = {"prompt_ids": tokenizer(row["prompt"])["input_ids"], "completion_ids": tokenizer("1+1=2. ")["input_ids"]}
    examples, _ = tokenize_examples([row | ids, row | {"label": False}], tokenizer, 64)
    assert examples.completion(0, 0).tolist() == ids["completion_ids"]
    assert examples.prompt_of.tolist() == [0, 0]
    with pytest.raises(UserError, match="2 of 2 completions are not what their completion_ids say"):
        tokenize_examples([row | ids | {"completion_ids": [40, 41]}] * 2, tokenizer, 64)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no eos_token"):
        tokenize_examples([row, row], tokenizer, 64)


LABELS = np.array([True] * 30 + [False] * 10)


def test_auto_weight_makes_both_labels_weigh_the_same():
    assert choose_weights(KtoConfig(desirable_weight="auto", undesirable_weight=1.5), LABELS).desirable == 0.5


def test_weights_outside_the_papers_range_are_named(caplog):
    choose_weights(KtoConfig(), LABELS)
    assert "λ_D n_D / λ_U n_U is 3, outside the paper's [1, 4/3]: a desirable_weight in [0.333, 0.444]" in caplog.text


def test_one_label_is_refused_unless_allowed(caplog):
    with pytest.raises(UserError, match="every example is labelled True"):
        choose_weights(KtoConfig(), LABELS[:30])
    choose_weights(KtoConfig(allow_single_label=True), LABELS[:30])
    assert "z0 will cancel the reward" in caplog.text


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=80),
    st.integers(1, 2_000),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_sequence_is_in_one_bin_within_the_budget_and_bins_divide_by_processes(sizes, budget, processes, packed):
    lengths = np.array(sizes)
    bins = plan_bins(lengths, budget, processes, packed)
    assert sorted(index for one in bins for index in one) == list(range(len(sizes)))
    assert len(bins) % processes == 0
    for one in filter(None, bins):
        tokens = lengths[one].sum() if packed else len(one) * lengths[one].max()
        assert tokens <= budget or len(one) == 1


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_log_probabilities_are_those_of_each_completion_alone(shape, packed):
    examples = examples_of(9)
    model = make_model(shape, len(make_tokenizer())).eval()
    pairs = [(index, (index + 2) % 9) for index in range(9)]
    use_kto_forward(model)
    prompts, completions = np.array(pairs).T
    together = model(bin=make_bin(examples, prompts, completions, PAD_ID, packed))
    for number, (prompt, completion) in enumerate(pairs):
        prompt_ids, completion_ids = examples.prompt(prompt), examples.completion(completion, prompt)
        ids = torch.tensor([[*prompt_ids.tolist(), *completion_ids.tolist()]])
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
        alone = sum(logp[len(prompt_ids) - 1 + i, token].item() for i, token in enumerate(completion_ids.tolist()))
        assert together[number].item() == pytest.approx(alone, abs=1e-4)


def test_what_all_prompts_begin_with_is_shared_if_it_is_long_but_for_a_prompt_s_last_token():
    examples = few_shot_examples(9)
    prompts = [examples.prompt(index).tolist() for index in range(9)]
    shared = examples.sharing().num_shared
    assert len({tuple(prompt[:shared]) for prompt in prompts}) == 1
    assert len({tuple(prompt[: shared + 1]) for prompt in prompts}) > 1
    assert few_shot_examples(9, worked=1).sharing().num_shared == 0
    same = tokenize_examples([row | {"prompt": "plus " * 60} for row in rows(4)], make_tokenizer(), 256)[0]
    assert same.sharing().num_shared == len(same.prompt(0)) - 1


@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3", "llama"])
def test_shared_beginnings_of_prompts_change_neither_log_probabilities_nor_gradients(shape):
    apart, model = few_shot_examples(9), make_model(shape, len(make_tokenizer())).eval()
    assert use_kto_forward(model)
    assert can_share(model)
    prompts, completions = np.arange(9), (np.arange(9) + 2) % 9
    found = []
    for examples in (apart, apart.sharing()):
        one_bin = make_bin(examples, prompts, completions, PAD_ID, packed=True)
        loss, logps, _ = model(bin=one_bin, objective=lambda logp_b, _: torch.sigmoid(logp_b / 40))
        model.zero_grad()
        loss.backward()
        found.append((one_bin.input_ids_BT.numel(), logps, [weight.grad for weight in model.parameters()]))
    (tokens_apart, *apart_values), (tokens_shared, *shared_values) = found
    assert tokens_apart - tokens_shared == 8 * apart.sharing().num_shared
    torch.testing.assert_close(shared_values, apart_values, rtol=1e-4, atol=1e-6)


def test_a_completion_s_log_probability_does_not_depend_on_what_shares_its_row():
    examples, model = few_shot_examples(9).sharing(), make_model("llama", len(make_tokenizer())).eval()
    use_kto_forward(model)
    rows_N = np.arange(9)
    together = model(bin=make_bin(examples, rows_N, rows_N, PAD_ID, packed=True))
    alone = [model(bin=make_bin(examples, rows_N[[at]], rows_N[[at]], PAD_ID, packed=True))[0] for at in range(9)]
    torch.testing.assert_close(torch.stack(alone), together, rtol=0, atol=0)


def test_prompts_of_equal_text_share_only_the_tokens_that_all_of_them_have():
    merges = [("d", "e"), ("c", "d"), ("b", "c"), ("a", "b")]  # abcd is ab|cd, and before an e a|bc|de
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate(["<eos>", *characters, *map("".join, merges)])}
    bpe = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)), eos_token="<eos>")
    prompt = "what all of the prompts begin with, up to and with: abcd"
    some = [{"prompt": prompt, "completion": text, "label": text == "x"} for text in ("x", "ef", "!")]
    examples = tokenize_examples(some, bpe, 128)[0]
    assert examples.prompt(0).tolist() != examples.prompt(1).tolist()
    assert len({tuple(examples.prompt(row)[: examples.sharing().num_shared]) for row in range(3)}) == 1


def test_a_bin_of_shared_prompts_holds_no_more_sequences_than_its_copied_keys_leave_room_for():
    examples = few_shot_examples(9, worked=8).sharing()
    rows_N = np.arange(9)
    budget = 2 * examples.num_shared
    bins = plan_bins(examples.costs(rows_N, rows_N), budget - examples.num_shared, packed=True)
    assert examples.num_shared > 100
    for places in bins:
        own = (examples.lengths(rows_N, rows_N)[places] - examples.num_shared).sum()
        assert own + len(places) * (examples.num_shared // SHARED_COST) <= budget - examples.num_shared
