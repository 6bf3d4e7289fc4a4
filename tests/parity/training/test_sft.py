"""SFT's loss and gradients against TRL's SFTTrainer with `assistant_only_loss`, on the same conversations.

Where Ladle is given a template without generation tags, TRL's has the same template with tags added by hand.
"""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from ladle.data import prefer, sft
from ladle.data.config import SftDataConfig, SftPreferConfig
from ladle.data.store import IGNORED_LABEL, MixedDataset
from ladle.models.chat import CHATML
from ladle.models.load import save_model
from ladle.models.probe import probe
from ladle.training.cross_entropy import use_linear_cross_entropy
from tests.tiny_models import make_model, make_tokenizer
from tests.training_runs import prepare

trl = pytest.importorskip("trl", reason="TRL is not installed (extra `dev`)")
pytestmark = pytest.mark.slow

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [
        {"role": "system", "content": "Answer with numbers."},
        {"role": "user", "content": "3 plus 4?"},
        {"role": "assistant", "content": "<think>\n3+4\n</think>\n\nThe answer is 7."},
        {"role": "user", "content": "5 plus 6?"},
        {"role": "assistant", "content": "<think>\n5+6\n</think>\n\nThe answer is 11."},
    ],
    [{"role": "user", "content": "1 plus 1?"}, {"role": "assistant", "content": "2"}],
    [
        {"role": "user", "content": "Question: 8 plus 9?"},
        {"role": "assistant", "content": "8+9=17"},
        {"role": "user", "content": "And 1 plus 2?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "The answer is \\boxed{3}."},
    ],
]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def of_trl(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


CHATML_ANSWER = "{{ message['content'] + '<|im_end|>' + '\\n' }}"
CHATML_BY_ROLE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}" + CHATML_ANSWER + "{% endgeneration %}"
    "{% else %}" + CHATML_ANSWER + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tagged_qwen3() -> str:
    """Return Qwen3's own template, which drops the thinking of earlier turns, with tags."""
    template = of_trl("qwen3")
    start = template.index("{%- if loop.index0 > ns.last_query_index %}")
    end = template.index("{{- '<|im_end|>\\n' }}", start) + len("{{- '<|im_end|>\\n' }}")
    answer = template[start:end].replace("'<|im_start|>' + message.role + '\\n' + ", "")
    answer = answer.replace("'<|im_start|>' + message.role + '\\n<think>", "'<think>")
    opening = "{{- '<|im_start|>' + message.role + '\\n' }}{%- generation %}"
    return template[:start] + opening + answer + "{%- endgeneration %}" + template[end:]


TEMPLATES = {
    "chatml": (CHATML, lambda: CHATML_BY_ROLE),
    "llama3": ("llama3", lambda: of_trl("llama3_training")),
    "qwen3 with thinking, tags": ("qwen3_training", lambda: of_trl("qwen3_training")),
    "qwen3 with thinking": ("qwen3", tagged_qwen3),
}


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_loss_and_gradients_equal_trls(name, tmp_path: Path):
    ours, oracle = TEMPLATES[name]
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "additional_special_tokens": SPECIAL})
    model = make_model("qwen3", len(tokenizer))
    theirs = copy.deepcopy(model)
    tokenizer.chat_template = ours if ours == CHATML else of_trl(ours)
    save_model(model, tokenizer, tmp_path / "model")

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in CONVERSATIONS))
    (tmp_path / "preference").mkdir()
    (tmp_path / "data").mkdir()
    joined = SftPreferConfig.model_validate({"data": [{"dataset": str(rows), "format": "messages"}]})
    prefer.run(joined, {"source:0": [rows]}, tmp_path / "preference")
    config = SftDataConfig(max_length=256)
    sft.run(config, {"tokenizer": [tmp_path / "model"], "preference": [tmp_path / "preference"]}, tmp_path / "data")
    dataset = MixedDataset(tmp_path / "data")

    model.config.use_cache = False
    use_linear_cross_entropy(model, probe(model))
    trainer = {"max_steps": 1, "per_device_train_batch_size": len(dataset)}
    training = prepare(model, dataset, tmp_path / "training", trainer)
    (one_pass,) = training.task.passes(training, next(training.task.steps(training, 1)))
    loss = one_pass()
    loss.backward()

    tokenizer.chat_template = oracle()
    arguments = trl.SFTConfig(
        str(tmp_path / "trl"), assistant_only_loss=True, per_device_train_batch_size=len(CONVERSATIONS), use_cpu=True,
        bf16=False, report_to="none", max_length=256, gradient_checkpointing=False,
    )  # fmt: skip
    peer = trl.SFTTrainer(
        theirs,
        arguments,
        train_dataset=Dataset.from_list([{"messages": turns} for turns in CONVERSATIONS]),
        processing_class=tokenizer,
    )
    batch = next(iter(peer.get_train_dataloader()))
    peer.model.train()
    expected = peer.compute_loss(peer.model, batch)
    expected.backward()
    num_trained = sum(int((dataset[row]["labels"] != IGNORED_LABEL).sum()) for row in range(len(dataset)))
    assert num_trained == int((batch["labels"] != IGNORED_LABEL).sum())
    torch.testing.assert_close(loss.item(), expected.item(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(model), gradient(peer.model), rtol=0, atol=1e-6)
