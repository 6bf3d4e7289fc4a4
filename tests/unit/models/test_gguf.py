"""A model as a GGUF file: written here by the format's own package, read as a user would, against its own weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ladle.errors import CheckFailed, UserError
from ladle.models.load import import_model, load_model
from ladle.models.tokenizer import load_fast_tokenizer
from tests.tiny_models import make_model, make_tokenizer

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return query or key rows in llama.cpp's order, each head's two halves interleaved."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(
    model: PreTrainedModel, path: Path, quantized: str = "", more: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> None:
    """Write a Llama as llama.cpp's converter does; tensors whose name holds `quantized` in blocks of 8 bits."""
    config, tokenizer = model.config, make_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    for name, tensor in model.state_dict().items():
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            name = f"blk.{layer}.{NAMES[part]}.weight"
        else:
            whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            name = whole[name.removesuffix(".weight")] + ".weight"
        for part, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            if part + "." in name:
                tensor = interleaved(tensor, heads)
        array, kind = tensor.float().numpy(), gguf.GGMLQuantizationType.Q8_0
        if quantized and quantized in name:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    for name, tensor in more.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama() -> PreTrainedModel:
    return make_model("llama", len(make_tokenizer()))


def test_a_gguf_file_is_imported_with_the_weights_it_holds(llama, tmp_path):
    write_gguf(llama, tmp_path / "tiny.gguf", quantized="ffn_down")
    out = tmp_path / "out"
    out.mkdir()
    report = import_model(tmp_path / "tiny.gguf", out, None)
    assert report["gguf"] == {"file": "tiny.gguf", "tensors": {"F32": 19, "Q8_0": 2}}
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []
    imported, kind = load_model(out), gguf.GGMLQuantizationType.Q8_0
    assert imported.dtype == torch.float32
    for (name, tensor), found in zip(llama.state_dict().items(), imported.state_dict().values(), strict=True):
        if "down_proj" in name:
            tensor = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind))
        torch.testing.assert_close(found, tensor, rtol=0, atol=0)
    text = "Question: 3 plus 4?\nAnswer:"
    tokenizer = load_fast_tokenizer(out)
    assert tokenizer.encode(text) == make_tokenizer().encode(text)
    assert tokenizer.chat_template is not None
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode(text)])
    torch.testing.assert_close(imported(ids).logits, plain(ids).logits, rtol=0, atol=1e-5)


def test_a_tensor_without_a_place_is_refused(llama, tmp_path):
    write_gguf(llama, tmp_path / "tiny.gguf", more={"blk.0.unknown.weight": torch.zeros(64)})
    with pytest.raises(CheckFailed, match="a tensor of the file has no place"):
        import_model(tmp_path / "tiny.gguf", tmp_path, None)


def test_what_is_not_a_gguf_file_is_refused(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUX" * 20)
    with pytest.raises(UserError, match="is not a GGUF file that transformers can read"):
        import_model(tmp_path / "tiny.gguf", tmp_path, None)


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("ladle.models.gguf.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package gguf is missing.*pip install 'ladle\\[gguf\\]'"):
        import_model(tmp_path / "tiny.gguf", tmp_path, None)


def test_scaled_positions_are_refused_and_not_left_out(llama, tmp_path):
    factors = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 8.0, 8.0, 8.0])  # as llama.cpp writes Llama 3.1's
    write_gguf(llama, tmp_path / "tiny.gguf", more={"rope_freqs.weight": factors})
    with pytest.raises(UserError, match="scales its positions .rope_freqs.weight.*as a folder of safetensors"):
        import_model(tmp_path / "tiny.gguf", tmp_path, None)
    write_gguf(llama, tmp_path / "plain.gguf", more={"rope_freqs.weight": torch.ones(8)})
    assert import_model(tmp_path / "plain.gguf", tmp_path, None)["gguf"]["tensors"] == {"F32": 21}
