from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ladle.errors import CheckFailed, UserError
from ladle.models.config import FetchModelConfig
from ladle.models.load import copy_out_of_file, init_model, load_model, model_dir, require_side_files, save_model
from ladle.stages import fetch
from tests.tiny_models import DEEPSEEK_V3, SHAPES, make_model, make_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(make_model("deepseek_v3"), make_tokenizer(), tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_model_loads_again_bit_for_bit(shape, tmp_path):
    model = make_model(shape)
    save_model(model, make_tokenizer(), tmp_path)
    again = load_model(tmp_path).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_experts_are_saved_one_by_one_and_routing_keys_are_written(saved):
    folder = model_dir(saved)
    names = load_file(folder / "model.safetensors").keys()
    assert sum(".experts." in name for name in names) == 2 * 4 * 3  # MoE layers × experts × projections
    config = json.loads((folder / "config.json").read_text())
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused(saved, change):
    path = model_dir(saved) / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.shared_experts.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["model.layers.1.mlp.stranger.weight"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises((CheckFailed, UserError)):
        load_model(saved)


def test_no_model_there_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused():
    with pytest.raises(UserError, match="vocab_size is 10 and the tokenizer has"):
        init_model(DEEPSEEK_V3 | {"vocab_size": 10}, make_tokenizer(), "float32", 0)


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [
        ({"model_type": "deepseek_v33"}, "deepseek_v33"),
        (SHAPES["llama"] | {"hidden_size": -64}, "not a model"),
        ({"model_type": "modernbert-decoder"}, "bos_token_id"),  # it needs one, and the tokenizer has none
    ],
)
def test_an_architecture_that_is_no_model_is_refused(architecture, problem):
    with pytest.raises(UserError, match=problem):
        init_model(architecture, make_tokenizer(), "float32", 0)


def test_the_same_seed_gives_the_same_weights():
    one, two, other = (
        init_model(SHAPES["qwen3"], make_tokenizer(), "float32", seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_importing_strips_remote_code_and_keeps_every_weight(saved, tmp_path):
    path = model_dir(saved) / "config.json"
    config = json.loads(path.read_text()) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}
    }
    path.write_text(json.dumps(config))
    out = tmp_path / "imported"
    out.mkdir()
    fetch.run(FetchModelConfig(), {"model": [saved]}, out)
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    before, after = load_model(saved).state_dict(), load_model(out).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_a_fresh_model_has_the_dtypes_of_a_loaded_one(tmp_path, shape):
    tokenizer = make_tokenizer()
    fresh = init_model(SHAPES[shape], tokenizer, "bfloat16", 0)
    save_model(fresh, tokenizer, tmp_path)
    loaded = load_model(tmp_path, "bfloat16").state_dict()
    dtypes = {name: tensor.dtype for name, tensor in fresh.state_dict().items()}
    assert dtypes == {name: tensor.dtype for name, tensor in loaded.items()}
    assert (torch.float32 in dtypes.values()) == (shape == "deepseek_v3")


@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_a_model_that_owns_its_memory_lets_go_of_its_file(tmp_path, shape):
    save_model(make_model(shape), make_tokenizer(), tmp_path / "model")
    model = load_model(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    copy_out_of_file(model)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_contradicting_generation_config_costs_no_training(saved, caplog):
    """As a Trainer does, the end tokens are set; from then on transformers refuses to save what it loaded."""
    path = model_dir(saved) / "generation_config.json"
    path.write_text(json.dumps({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}))
    with caplog.at_level("WARNING", logger="ladle"):
        model = load_model(saved)
    assert "temperature=0.6 contradicts its other settings" in caplog.text
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [0, 5]
    require_side_files(model, make_tokenizer())
    model.generation_config.temperature = 0.5
    with pytest.raises(UserError, match="generation config cannot be saved"):
        require_side_files(model, make_tokenizer())


def test_an_architecture_without_sdpa_takes_eager(tmp_path, caplog):
    fields = {"model_type": "gptj", "n_embd": 64, "n_layer": 1, "n_head": 4, "rotary_dim": 8}
    tokenizer = make_tokenizer()
    save_model(init_model(fields, tokenizer, "float32", 0), tokenizer, tmp_path)
    with caplog.at_level("WARNING", logger="ladle"):
        model = load_model(tmp_path)
    assert model.config._attn_implementation == "eager"
    assert "GPTJForCausalLM has no sdpa attention: using eager" in caplog.text


def test_an_end_token_that_is_the_padding_token_too_is_learnt(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    fresh = init_model(SHAPES["qwen3"], tokenizer, "float32", 0)
    config = fresh.config.to_dict() | {"pad_token_id": tokenizer.eos_token_id}  # as many on the Hub say
    save_model(fresh, tokenizer, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model in (fresh, load_model(tmp_path)):
        ids = torch.tensor([[5, tokenizer.eos_token_id, 7]])
        model(input_ids=ids).logits.sum().backward()
        embedding = model.get_input_embeddings().weight
        assert embedding[tokenizer.eos_token_id].abs().sum() > 0
        assert embedding.grad[tokenizer.eos_token_id].abs().sum() > 0
