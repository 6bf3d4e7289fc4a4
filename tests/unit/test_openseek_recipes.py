"""The recipes of the OpenSeek reports hold the reports' values, and recipes for GPUs fit them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from ladle.kto.config import KtoConfig
from ladle.recipe import by_key, load_recipe
from ladle.training.memory import estimate_training


def test_pretraining_has_the_reports_values(repository):
    recipe = load_recipe(repository / "recipes" / "openseek" / "pretrain.yaml", [], "")
    assert recipe.mix is not None
    assert recipe.pretrain is not None
    assert (recipe.seed, recipe.mix.budget.sequences, recipe.mix.sequence_length) == (233, 7_500_000, 4096)
    assert (recipe.pretrain.dtype, recipe.pretrain.attn_implementation) == ("bfloat16", "sdpa")
    assert (recipe.pretrain.distributed, recipe.pretrain.processes) == ("ddp", 8)
    trainer = recipe.pretrain.trainer.values()
    expected = {"save_strategy": "steps", "save_steps": 1000, "save_total_limit": 10, "logging_steps": 1, "bf16": True}
    assert expected.items() <= trainer.items()
    assert trainer["report_to"] == ["tensorboard"]
    rows_per_step = 8 * trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]
    assert 7000 <= 7_500_000 // rows_per_step < 8000, "the report's checkpoints are 1000 to 7000"


def test_the_soup_is_uniform_over_base_and_seven_checkpoints(repository):
    recipe = load_recipe(repository / "recipes" / "openseek" / "soup.yaml", [], "")
    assert recipe.soup is not None
    assert recipe.soup.method == "uniform"
    assert recipe.soup.members[0] == "base"
    names = {f"checkpoint-{step}" for step in range(1000, 8001, 500)}
    chosen = {name for name in names if Path(name).match(Path(recipe.soup.members[1]).name)}
    assert chosen == {f"checkpoint-{step}000" for step in range(1, 8)}


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("zero2", "DEEPSPEED"), ("fsdp", "FSDP")])
def test_the_accelerate_configs_are_what_the_switch_does(repository, name, kind):
    path = repository / "recipes" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (kind, 8, "bf16")
    fields = yaml.safe_load(path.read_text())
    if name == "zero2":
        expected = {"zero_stage": 2, "offload_optimizer_device": "none", "offload_param_device": "none"}
        assert fields["deepspeed_config"] == expected
    if name == "fsdp":
        assert fields["fsdp_config"]["fsdp_version"] == 2


QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064, "max_position_embeddings": 32_768,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most_gb"),
    [("one-gpu/openseek-kto", 24), ("one-gpu/qlora-7b", 24), ("openseek/kto", 80), ("openseek/pretrain", 80)],
)
def test_a_training_fits_its_gpus(repository, name, most_gb):
    recipe = load_recipe(repository / "recipes" / f"{name}.yaml", [], "")
    openseek = yaml.safe_load((repository / "recipes/openseek/init.yaml").read_text())["architecture"]
    model = QWEN_7B if "7b" in name else openseek | {"vocab_size": 151_851}
    if recipe.mix is not None:
        config, length = recipe.pretrain, recipe.mix.sequence_length
    else:
        (config,) = by_key(recipe.kto, "kto").values()
        length = config.max_length
    assert config is not None
    rows = config.trainer.get("per_device_train_batch_size")
    if isinstance(config, KtoConfig):
        rows = config.max_tokens_per_microbatch // length
    found = estimate_training(config, model, length, rows, on_gpu=True)
    assert found.total < 0.9 * most_gb * 1e9
