"""A repository as OpenSeek's is on the Hub: remote code named, an MTP layer declared, a tiktoken vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ladle.errors import CheckFailed, UserError
from ladle.models.load import REPORT, import_model, save_model
from tests.tiny_models import make_model, make_tokenizer

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def repository_like_openseeks(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    save_model(make_model("deepseek_v3", len(tokenizer)), tokenizer, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
        "num_nextn_predict_layers": 1,
    }
    del config["topk_method"]
    path.write_text(json.dumps(config))
    (folder / "modeling_deepseek.py").write_text("raise SystemExit('code of a repository was run')")
    return folder


def add_mtp_layer(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    extra = {"eh_proj.weight": torch.zeros(4, 8), "enorm.weight": torch.ones(4)}
    save_file(tensors | {f"model.layers.3.{name}": value for name, value in extra.items()}, path, {"format": "pt"})


def test_the_report_names_every_change(repository_like_openseeks, tmp_path):
    out = tmp_path / "out"
    report = import_model(repository_like_openseeks, out, None)
    assert report == json.loads((out / REPORT).read_text())
    assert report["class"] == "DeepseekV3ForCausalLM"
    assert report["config"]["removed"].keys() >= {"auto_map"}
    assert report["config"]["changed"]["num_nextn_predict_layers"] == [1, 0]
    assert report["config"]["added"]["topk_method"] == "noaux_tc"
    assert report["mtp"] == {"declared": 1, "tensors_left_out": 0, "kept": 0}
    assert report["files_left_out"] == ["modeling_deepseek.py"]
    assert not (out / "modeling_deepseek.py").exists()


def test_what_is_written_loads_in_transformers_without_a_tensor_too_few_or_many(repository_like_openseeks, tmp_path):
    out = tmp_path / "out"
    add_mtp_layer(repository_like_openseeks)
    report = import_model(repository_like_openseeks, out, "bfloat16")
    assert report["mtp"]["tensors_left_out"] == 2
    model, found = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    source = AutoModelForCausalLM.from_pretrained(repository_like_openseeks, trust_remote_code=False)
    for name, tensor in source.to(torch.bfloat16).state_dict().items():
        assert torch.equal(model.state_dict()[name].to(tensor.dtype), tensor), name


def test_generation_stops_at_the_end_of_a_turn_as_well(repository_like_openseeks, tmp_path):
    out = tmp_path / "out"
    import_model(repository_like_openseeks, out, None)
    tokenizer = AutoTokenizer.from_pretrained(out)
    expected = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == expected
    assert tokenizer.apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False).endswith("<|im_end|>\n")


def test_a_stranger_among_the_tensors_is_refused(repository_like_openseeks, tmp_path):
    path = repository_like_openseeks / "model.safetensors"
    save_file(load_file(path) | {"model.layers.1.stranger": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(CheckFailed, match="model.layers.1.stranger"):
        import_model(repository_like_openseeks, tmp_path / "out", None)


def test_openseeks_own_vocabulary_comes_out_as_a_fast_tokenizer(repository_like_openseeks, shared_data, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (repository_like_openseeks / name).unlink()
    for path in (shared_data / "openseek-tokenizer").iterdir():
        shutil.copy(path, repository_like_openseeks)
    out = tmp_path / "out"
    report = import_model(repository_like_openseeks, out, None)
    assert report["tokenizer"]["converted"]
    assert report["tokenizer"]["tokens"] == 151851
    assert AutoTokenizer.from_pretrained(out).is_fast


def save_tiny(folder: Path, shape: str = "llama", **changes) -> Path:
    tokenizer = make_tokenizer()
    save_model(make_model(shape, len(tokenizer), **changes), tokenizer, folder)
    return folder


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


LAYER_2 = {"model.layers.2.enorm.weight": torch.ones(4), "model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("extra", "declared", "left_out"),
    [
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)}, 1, 1),
        ({"model.layers.3.mlp.up_proj.weight": torch.ones(2, 2)}, 1, None),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)}, 0, None),
        (LAYER_2, 0, 2),
        ({"mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, 0, 1),
    ],
)
def test_only_layers_of_multi_token_prediction_are_left_out(tmp_path, extra, declared, left_out):
    folder = save_tiny(tmp_path / "source")
    edit(folder / "config.json", num_nextn_predict_layers=declared)
    path = folder / "model.safetensors"
    save_file(load_file(path) | extra, path, {"format": "pt"})
    if left_out is None:
        with pytest.raises(CheckFailed, match=f"unexpected_keys: {len(extra)}"):
            import_model(folder, tmp_path / "out", None)
    else:
        assert import_model(folder, tmp_path / "out", None)["mtp"]["tensors_left_out"] == left_out


def test_a_model_of_more_layers_than_its_config_says_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "source", num_hidden_layers=4)
    edit(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(CheckFailed, match="unexpected_keys: 18"):
        import_model(folder, tmp_path / "out", None)


def test_a_generation_config_that_contradicts_itself_is_repaired(tmp_path, caplog):
    folder = save_tiny(tmp_path / "source")
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    report = import_model(folder, tmp_path / "out", None)
    assert report["generation_settings_left_out"] == {"temperature": 0.6, "top_p": 0.9}
    assert "temperature=0.6" in caplog.text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.repetition_penalty == 1.1
    model.generation_config.pad_token_id = 1  # as a Trainer does: from then on saving is strict
    model.save_pretrained(tmp_path / "again")


def test_weights_keep_the_dtype_that_they_have_not_the_one_that_the_config_says(tmp_path):
    folder = save_tiny(tmp_path / "source")
    edit(folder / "config.json", dtype="bfloat16")
    import_model(folder, tmp_path / "out", None)
    stored, written = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "out"))
    assert all(torch.equal(written[name], tensor) and tensor.dtype == torch.float32 for name, tensor in stored.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_a_head_of_its_own_makes_the_config_say_so(tmp_path, caplog):
    folder = save_tiny(tmp_path / "source", tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, path, {"format": "pt"})
    import_model(folder, tmp_path / "out", None)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "tie_word_embeddings is now false" in caplog.text


def test_damaged_weights_are_refused_and_a_damaged_generation_config_is_left_out(tmp_path, caplog):
    folder = save_tiny(tmp_path / "source")
    (folder / "generation_config.json").write_text('{"do_sample": true,}')
    import_model(folder, tmp_path / "out", None)
    assert "generation_config.json is not JSON" in caplog.text
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match="model.safetensors is not a complete safetensors file"):
        import_model(folder, tmp_path / "again", None)
    assert not (tmp_path / "again").exists()
