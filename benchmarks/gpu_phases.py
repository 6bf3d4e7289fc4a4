"""The phases of gpu.py, each run by its name in a process of its own.

    PYTHONPATH=src python benchmarks/gpu_phases.py PHASE SIZE DEVICE FOLDER

A phase prints JSON lines that begin with "what". What it trains goes through Ladle's own stages, from model folders and
mixtures on disk, as a recipe's does; the models have random weights. FOLDER is shared by the phases of one run.
"""

from __future__ import annotations

import gc
import json
import math
import platform
import random
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

DENSE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.1,
}  # fmt: skip
SPARSE = {
    "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
    "num_hidden_layers": 3, "first_k_dense_replace": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 1.0, "q_lora_rank": None, "kv_lora_rank": 32,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 24, "max_position_embeddings": 4096,
    "tie_word_embeddings": True, "initializer_range": 0.1,
}  # fmt: skip
OPENSEEK = SPARSE | {
    "hidden_size": 1280, "intermediate_size": 7168, "moe_intermediate_size": 896, "num_hidden_layers": 6,
    "num_attention_heads": 10, "num_key_value_heads": 10, "n_routed_experts": 64, "num_experts_per_tok": 6,
    "n_shared_experts": 2, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "vocab_size": 151_872, "initializer_range": 0.02,
}  # fmt: skip
TINY_MODELS = {"llama": DENSE, "deepseek_v3": SPARSE}
LOW = "bfloat16"
"""The type that models are trained in here."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        model: trained, aligned and generated with.
        rows, length: of a forward pass.
        attention: rows, heads, positions, width of queries, width of values.
        head: tokens, hidden size, vocabulary.
        steps: timed ones; one before them is not.
        completions: of KTO's one epoch.
        requests, new_tokens: of generation.
        matmul: side of a square matrix.
    """

    model: dict[str, Any]
    rows: int
    length: int
    attention: tuple[int, int, int, int, int]
    head: tuple[int, int, int]
    steps: int
    completions: int
    requests: int
    new_tokens: int
    matmul: int


SIZES = {
    "openseek": Size(OPENSEEK, 8, 4096, (8, 10, 4096, 192, 128), (8 * 4096, 1280, 151_872), 8, 128, 256, 256, 8192),
    "tiny": Size(SPARSE, 2, 256, (2, 4, 256, 32, 24), (256, 64, 512), 2, 8, 8, 8, 256),
}


@dataclass(frozen=True)
class Bench:
    """What every phase is given."""

    size: Size
    device: torch.device
    folder: Path

    @property
    def model(self) -> Path:
        """The model that `prepare` wrote."""
        return self.folder / "model"

    @property
    def mixture(self) -> Path:
        """Rows of `size.length` tokens that `prepare` wrote."""
        return self.folder / "mixture"

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], times: int = 5) -> float:
        """Return the median seconds of a call, after one that is not counted."""
        run()
        found = []
        for _ in range(times):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            found.append(time.perf_counter() - started)
        return median(found)

    @contextmanager
    def peak(self) -> Any:
        """Give a function that returns the gigabytes allocated at most since here, None on a CPU."""
        if self.device.type != "cuda":
            yield lambda: None
            return
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / 1e9


def say(what: str, **figures: Any) -> None:
    """Print a measurement."""
    print(json.dumps({"what": what} | figures), flush=True)


def machine(bench: Bench) -> None:
    """Versions, and what the device can do at best."""
    found = {}
    for name in ("torch", "transformers", "triton", "trl", "deepspeed", "vllm", "flash-attn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "GB": round(properties.total_memory / 1e9, 1), "CUDA": torch.version.cuda}
        if find_spec("pynvml"):
            import pynvml

            pynvml.nvmlInit()
            found["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
    else:
        found |= {"device": platform.machine(), "threads": torch.get_num_threads()}
    say("versions", **found, Python=platform.python_version())
    side = bench.size.matmul
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = bench.seconds(lambda a=a, b=b: a @ b)
        say(f"square product, {dtype}", TFLOPs=2 * side**3 / seconds / 1e12)
    values = torch.zeros(side * side * 4, device=bench.device)
    say("copy", GB_a_second=2 * values.nbytes / bench.seconds(values.clone) / 1e9)


def prepare(bench: Bench) -> None:
    """The model and the mixture that later phases read."""
    from ladle.models.load import init_model, save_model

    started = time.perf_counter()
    tokenizer = _tokenizer()
    with torch.device(bench.device):
        model = init_model(bench.size.model, tokenizer, LOW, 0)
    save_model(model.cpu(), tokenizer, bench.model)
    say("model", parameters=sum(weight.numel() for weight in model.parameters()))
    rows = bench.size.rows * (bench.size.steps + 2)
    _mix(bench.model, bench.mixture, rows, bench.size.length)
    say("prepared", seconds=time.perf_counter() - started)


def _problems(count: int) -> list[str]:
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        a, b, c = (draw.randint(2, 99) for _ in range(3))
        texts.append(f"Ada has {a} boxes of {b} eggs and finds {c} more. {a}*{b}={a * b}; {a * b}+{c}={a * b + c}.")
    return texts


def _tokenizer() -> Any:
    from ladle.models.tokenizer import train_tokenizer

    return train_tokenizer(_problems(400), 400)


def _mix(model: Path, out: Path, rows: int, length: int) -> None:
    """Write packed rows of documents of very different lengths, up to a row."""
    from ladle.data.config import MixConfig
    from ladle.stages import mix

    draw, problems = random.Random(0), _problems(2000)
    texts = [" ".join(draw.choices(problems, k=max(1, round(length / 40 * draw.random() ** 3)))) for _ in range(600)]
    out.mkdir(parents=True)
    source = out.parent / f"{out.name}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = MixConfig.model_validate(
        {
            "sources": [{"name": "text", "dataset": source.name, "ratio": 1.0, "max_epochs": 10_000}],
            "budget": {"sequences": rows},
            "validation": {"sequences": 4},
            "sequence_length": length,
            "workers": 1,
        }
    )
    mix.run(config, {"tokenizer": [model], "source:text": [source]}, out)


def _pretrain(bench: Bench, model: Path, mixture: Path, out: Path, **section: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Run the stage, and return its result and its log."""
    from ladle.stages import pretrain
    from ladle.training.config import PretrainConfig

    trainer = {"logging_steps": 1, "save_strategy": "no", "report_to": "none"} | section.pop("trainer")
    config = PretrainConfig.model_validate(section | {"trainer": trainer | _where(bench)})
    out.mkdir(parents=True, exist_ok=True)
    result = pretrain.run(config, {"model": [model], "mixture": [mixture]}, out)
    return result, [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]


def _where(bench: Bench) -> dict[str, Any]:
    return {"use_cpu": True} if bench.device.type == "cpu" else {}


def _labelled(config: Any, model: Path, folder: Path, rows: int, words: int) -> dict[str, list[Path]]:
    """Write labelled completions and the reference pass of a training, and return the inputs of its stage."""
    from datasets import Dataset, DatasetDict

    from ladle.kto.config import KtoReferenceConfig
    from ladle.stages import kto_reference

    draw, problems = random.Random(1), _problems(200)
    data = [
        {
            "prompt": f"{number} " + " ".join(draw.choices(problems, k=max(1, words // 2))),
            "completion": " " + " ".join(draw.choices(problems, k=draw.randint(1, words))),
            "label": number % 2 == 0,
        }
        for number in range(rows)
    ]
    parts = DatasetDict({"train": Dataset.from_list(data), "test": Dataset.from_list(data[:2])})
    parts.save_to_disk(folder / "preference")
    (folder / "reference").mkdir()
    reference = KtoReferenceConfig.of(config, config.seed)
    kto_reference.run(reference, {"model": [model], "preference": [folder]}, folder / "reference")
    return {"model": [model], "reference": [folder / "reference"]}


def _kto_config(bench: Bench, dtype: str, max_length: int, **trainer: Any) -> Any:
    from ladle.kto.config import KtoConfig

    values = {"num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    return KtoConfig.model_validate(
        {"dtype": dtype, "max_length": max_length, "trainer": values | trainer | _where(bench)}
    )


def tiny(bench: Bench) -> None:
    """Pretraining, KTO and generation of tiny models in float32, on the device and on a CPU."""
    from ladle.generation.request import Request
    from ladle.generation.transformers_backend import TransformersGenerator
    from ladle.models.load import init_model, save_model
    from ladle.stages import kto

    tokenizer = _tokenizer()
    devices = [bench, Bench(bench.size, torch.device("cpu"), bench.folder)]
    for name, fields in TINY_MODELS.items():
        folder = bench.folder / "tiny" / name
        save_model(init_model(fields, tokenizer, "float32", 0), tokenizer, folder / "model")
        _mix(folder / "model", folder / "mixture", 40, 256)
        losses: dict[str, list[list[float]]] = {"pretraining": [], "KTO": []}
        for number, one in enumerate(devices):
            trainer = {"max_steps": 10, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
            out = folder / f"pretrain-{number}"
            _, log = _pretrain(one, folder / "model", folder / "mixture", out, trainer=trainer)
            losses["pretraining"].append([row["loss"] for row in log if "loss" in row])
            (folder / f"kto-{number}" / "out").mkdir(parents=True)
            values = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
            config = _kto_config(one, "float32", 256, **values)
            inputs = _labelled(config, folder / "model", folder / f"kto-{number}", 16, 3)
            kto.run(config, inputs, folder / f"kto-{number}" / "out")
            lines = (folder / f"kto-{number}" / "out" / "training_log.jsonl").read_text().splitlines()
            losses["KTO"].append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
        for what, (here, there) in losses.items():
            furthest = max(abs(a / b - 1) for a, b in zip(here, there, strict=True))
            say(f"{what}, {name}", steps=len(here), furthest_from_cpu=furthest)
            assert furthest < 1e-2, (here, there)
        tokens = []
        for one in devices:
            model = init_model(fields, tokenizer, "float32", 0).to(one.device).eval()
            ids = [tokenizer(text)["input_ids"] for text in _problems(8)]
            requests = [Request(str(number), prompt, 0, 24, temperature=0) for number, prompt in enumerate(ids)]
            generator = TransformersGenerator(model, tokenizer, batch_size=4)
            tokens.append({sample.id: sample.token_ids for sample in generator.generate(requests)})
        unlike = sum(tokens[0][name] != tokens[1][name] for name in tokens[0])
        say(f"greedy tokens, {name}", rows=len(tokens[0]), rows_unlike_cpu=unlike)


def documents(bench: Bench) -> None:
    """Packed rows beside each document alone, by every attention, at batches of 1 and 8."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from ladle.errors import UserError
    from ladle.models.attention import attention_inputs, document_borders, to_device
    from ladle.models.probe import hidden_states, probe

    lengths = [37, 1, 90, 128]
    for name, fields in TINY_MODELS.items():
        for way in ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"):
            for dtype in (torch.float32, torch.bfloat16):
                what, rest = f"{name}, {way}, {dtype}", dict(fields)
                config = AutoConfig.for_model(rest.pop("model_type"), vocab_size=400, **rest)
                torch.manual_seed(0)
                try:
                    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=way)
                    model = model.to(bench.device).eval()
                    model.config.use_cache = False
                    if reason := probe(model, 8).why_apart:
                        say(what, one_document_a_row=reason)
                        continue
                except (UserError, ImportError, ValueError) as error:
                    say(what, refused=str(error).splitlines()[0])
                    continue
                found, ran = {}, model.config._attn_implementation
                for rows in (1, 8):
                    ids = torch.randint(0, 400, (rows, sum(lengths)), device=bench.device)
                    places = torch.cat([torch.arange(length) for length in lengths]).expand(rows, -1)
                    batch = {"input_ids": ids, "position_ids": places} | document_borders(places)
                    with torch.no_grad():
                        packed = hidden_states(model, **attention_inputs(model, to_device(batch, bench.device)))
                        alone = [hidden_states(model, input_ids=part) for part in ids.split(lengths, 1)]
                    apart = (packed - torch.cat(alone, 1)).float().norm(dim=-1) / packed.float().norm(dim=-1)
                    found[f"rows_{rows}"] = float(apart.max())
                say(what, ran=ran, **found)
                assert max(found.values()) < (1e-5 if dtype == torch.float32 else 0.05), found


def head(bench: Bench) -> None:
    """Cross-entropy of the head in bfloat16: time, memory, and distance from float64 beside plain PyTorch's."""
    from ladle.training.cross_entropy import linear_cross_entropy_sum

    tokens, width, vocabulary = bench.size.head
    torch.manual_seed(0)
    make = {"device": bench.device, "dtype": torch.bfloat16, "requires_grad": True}
    hidden, weight = torch.randn(tokens, width, **make), torch.randn(vocabulary, width, **make)
    target = torch.randint(0, vocabulary, (tokens,), device=bench.device)

    def ladle(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy_sum(hidden, weight, target)

    def plain(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), target, reduction="sum")

    few = min(tokens, 512)
    exact = [value.detach()[:few].double().requires_grad_() for value in (hidden, weight[:8192])]
    exact_target = target[:few] % len(exact[1])
    plain(*exact, exact_target).backward()  # in float32 from the logits on
    reference = [value.grad for value in exact]
    for name, way in (("Ladle", ladle), ("plain PyTorch", plain)):
        low = [value.detach().bfloat16().requires_grad_() for value in exact]
        way(*low, exact_target).backward()
        errors = [float((a.grad.double() - b).norm() / b.norm()) for a, b in zip(low, reference, strict=True)]
        say(f"gradients of {few} tokens, {name}", hidden_error=errors[0], weight_error=errors[1])
    for name, way in (("Ladle", ladle), ("plain PyTorch", plain)):
        part = slice(0, tokens if name == "Ladle" else max(1, tokens // 8))  # plain logits of all would not fit

        def step(way: Any = way, part: slice = part) -> None:
            way(hidden[part], weight, target[part]).backward()
            hidden.grad = weight.grad = None

        with bench.peak() as peak:
            seconds = bench.seconds(step, 3)
            say(f"{name}", us_a_token=1e6 * seconds / len(target[part]), peak_gb=peak())


def attention(bench: Bench) -> None:
    """Kernels on one layer's queries, keys and values, forward and backward, milliseconds."""
    rows, heads, positions, width, value_width = bench.size.attention
    torch.manual_seed(0)
    make = {"device": bench.device, "dtype": torch.bfloat16, "requires_grad": True}
    query, key = (torch.randn(rows, heads, positions, width, **make) for _ in range(2))
    value = torch.randn(rows, heads, positions, value_width, **make)
    sizes = _document_sizes(rows, positions)
    document = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    document = document.view(rows, positions).to(bench.device)
    causal = torch.ones(positions, positions, dtype=torch.bool, device=bench.device).tril()
    mask = ((document[:, :, None] == document[:, None]) & causal)[:, None]

    def padded() -> torch.Tensor:
        return F.pad(value, (0, width - value_width))

    def masked() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, padded(), mask)

    def causal_alone() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, padded(), is_causal=True)

    def varlen() -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        bounds = torch.tensor([0, *sizes], device=bench.device).cumsum(0).int()
        flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, padded())]
        return varlen_attn(*flat, bounds, bounds, max(sizes), max(sizes), window_size=(-1, 0))

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "sdpa, masked": masked,
        "sdpa, causal, documents joined": causal_alone,
    }
    if bench.device.type == "cuda":
        ways |= {"varlen": varlen, "flex": _flex(query, key, value, document)}
    for name, way in ways.items():

        def step(way: Any = way) -> None:
            way().sum().backward()
            query.grad = key.grad = value.grad = None

        try:
            say(name, forward_ms=1e3 * bench.seconds(lambda way=way: way().detach()), both_ms=1e3 * bench.seconds(step))
        except (RuntimeError, ImportError) as error:
            say(name, cannot=str(error).splitlines()[0])


def _flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, document: torch.Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def same(row: Any, head: Any, one: Any, other: Any) -> Any:
        return (one >= other) & (document[row, one] == document[row, other])

    rows, positions = document.shape
    blocks = create_block_mask(same, rows, None, positions, positions, device=str(document.device))
    compiled = torch.compile(flex_attention)
    return lambda: compiled(query, key, value, block_mask=blocks)


def _document_sizes(rows: int, positions: int) -> list[int]:
    """Lengths of documents, which end where rows do."""
    draw, sizes = random.Random(0), []
    for _ in range(rows):
        left = positions
        while left:
            size = min(left, max(1, round(positions * draw.random() ** 3)))
            sizes.append(size)
            left -= size
    return sizes


def train(bench: Bench) -> None:
    """Pretraining by Ladle and by a plain Trainer, with memory beside the estimate."""
    from ladle.errors import UserError
    from ladle.models.load import load_model
    from ladle.training.config import PretrainConfig
    from ladle.training.memory import estimate_training
    from ladle.training.progress import flops_per_token, peak_flops

    size = bench.size
    model = load_model(bench.model, dtype=LOW)
    flops, peak = flops_per_token(model, size.length), peak_flops(bench.device, torch.bfloat16)
    fields = json.loads((bench.model / "config.json").read_text())
    del model
    for name, section in {
        "Ladle": {},
        "Ladle, activations computed again": {"trainer": {"gradient_checkpointing": True}},
        "Ladle, compiled layers": {"trainer": {"torch_compile": True}},
    }.items():
        trainer = {
            "max_steps": size.steps + 1, "per_device_train_batch_size": size.rows, "learning_rate": 5e-5,
            **section.get("trainer", {}),
        }  # fmt: skip
        out = bench.folder / f"train-{name}"
        try:
            with bench.peak() as peak_gb, _waits(bench) as waits:
                result, log = _pretrain(bench, bench.model, bench.mixture, out, dtype=LOW, trainer=trainer)
                measured = peak_gb()
        except (RuntimeError, UserError) as error:
            say(name, cannot=f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        _say_speed(name, result.timings["seconds_per_step"], size, flops, peak, measured, waits(), log)
        if name != "Ladle, compiled layers":
            config = PretrainConfig.model_validate({"dtype": LOW, "trainer": trainer})
            estimate = estimate_training(config, fields, size.length, size.rows).total / 1e9
            relative = None if measured is None else estimate / measured - 1
            say(f"memory estimate, {name}", estimate_gb=estimate, measured_gb=measured, relative=relative)
    _train_plainly(bench, flops, peak)


@contextmanager
def _waits(bench: Bench) -> Any:
    """Give a function that returns how often the host has waited for the device since here, None on a CPU."""
    if bench.device.type != "cuda":
        yield lambda: None
        return
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: sum("synchronizing" in str(warning.message) for warning in caught)
    torch.cuda.set_sync_debug_mode("default")


def _say_speed(
    name: str, seconds: float, size: Size, flops: float, peak: float | None, gb: Any, waits: Any, log: Any
) -> None:
    rate = size.rows * size.length / seconds
    mfu = None if peak is None else flops * rate / peak
    loss = [row["loss"] for row in log if "loss" in row][-1]
    say(name, seconds_a_step=seconds, tokens_a_second=rate, mfu=mfu, peak_gb=gb, waits_in_all=waits, last_loss=loss)


def _train_plainly(bench: Bench, flops: float, peak: float | None) -> None:
    """transformers' Trainer on the same rows: bfloat16 weights, documents joined, no balancing."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from ladle.data.store import MixedDataset

    class Clock(TrainerCallback):
        ends: list[float] = []  # noqa: RUF012

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            bench.wait()
            self.ends.append(time.perf_counter())

    size, rows = bench.size, MixedDataset(bench.mixture)
    with bench.peak() as peak_gb:
        model = AutoModelForCausalLM.from_pretrained(bench.model, dtype=torch.bfloat16, attn_implementation="sdpa")
        arguments = TrainingArguments(
            output_dir=str(bench.folder / "trainer"), max_steps=size.steps + 1, bf16=True, learning_rate=5e-5,
            per_device_train_batch_size=size.rows, logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=bench.device.type == "cpu",
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[{"input_ids": rows[row]["input_ids"]} for row in range(len(rows))],  # type: ignore[arg-type]
            data_collator=DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(bench.model), mlm=False),
            callbacks=[clock := Clock()],
        )
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            say("plain Trainer", cannot=str(error).splitlines()[0])
            return
        measured = peak_gb()
    seconds = (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)
    _say_speed("plain Trainer", seconds, size, flops, peak, measured, None, trainer.state.log_history)


def precision(bench: Bench) -> None:
    """The share of the weights that a step at 5e-5 moves: bfloat16 over float32 weights, and bfloat16 alone."""
    import bf16_masters

    mixture, tokenizer = bf16_masters.make_mixture(bench.folder / "precision")
    for way in bf16_masters.WAYS:
        steps = 10 * bench.size.steps
        loss, moved = bf16_masters.train(way, 5e-5, steps, mixture, tokenizer, bench.folder / f"precision-{way}")
        say(way, steps=steps, last_loss=loss, weights_moved=moved)


def kto(bench: Bench) -> None:
    """KTO with its reference pass from disk, and beside TRL's on a dense model where TRL is installed."""
    from ladle.stages import kto as stage

    size, out = bench.size, bench.folder / "kto"
    config = _kto_config(bench, LOW, size.length, per_device_train_batch_size=size.completions // 4)
    with bench.peak() as peak_gb:
        started = time.perf_counter()
        inputs = _labelled(config, bench.model, out, size.completions, max(2, size.length // 120))
        reference = time.perf_counter() - started
        (out / "out").mkdir()
        result = stage.run(config, inputs, out / "out")
        say("Ladle, from disk", reference_seconds=reference, **result.timings, peak_gb=peak_gb())
    if find_spec("trl") is None:
        say("TRL", skipped="trl is not installed")
        return
    import kto_contenders

    kto_contenders.quieten()
    rows = size.completions // 4
    workload = kto_contenders.Workload(size.head[2], max(64, size.head[1]), rows, 4 * rows, 1)
    kto_contenders.WORKLOADS["gpu"] = workload
    for contender in ("ladle", "trl_best"):
        with bench.peak() as peak_gb:
            ends = kto_contenders.run(contender, "dense", "gpu", workload.rows, 2, 0, 8_192)
            say(f"{contender}, dense model", seconds_of_second_epoch=ends[1] - ends[0], peak_gb=peak_gb())


def generation(bench: Bench) -> None:
    """Sampling by slots and by transformers' `generate`, tokens a second."""
    import bench_generate
    from ladle.generation.request import Request
    from ladle.generation.transformers_backend import TransformersGenerator
    from ladle.models.load import load_model

    size, draw = bench.size, random.Random(0)
    model = load_model(bench.model, dtype=LOW).to(bench.device).eval()
    vocabulary = model.config.vocab_size
    drawn = [draw.lognormvariate(math.log(size.new_tokens / 4), 0.8) for _ in range(size.requests)]
    lengths = [min(size.new_tokens, max(4, round(length))) for length in drawn]
    requests = [
        Request(
            str(number),
            [draw.randrange(vocabulary) for _ in range(draw.randint(4, 160))],
            number,
            length,
            temperature=0,
        )
        for number, length in enumerate(lengths)
    ]
    batch = max(2, size.requests // 4)
    generator = TransformersGenerator(model, bench_generate.NoTokenizer(), batch_size=batch)
    ways = {
        "slots": lambda some: list(generator.generate(some)),
        "generate": lambda some: bench_generate.run_static(model, some, batch),
    }
    for name, way in ways.items():
        way(requests[:2])
        bench.wait()
        started = time.perf_counter()
        way(requests)
        bench.wait()
        say(name, tokens_a_second=sum(lengths) / (time.perf_counter() - started), requests=len(requests), batch=batch)


def resume(bench: Bench) -> None:
    """Whether a training that was stopped ends with the bytes of one that was not, by default and deterministic."""
    from ladle.artifacts.files import hash_file
    from ladle.errors import Preempted
    from ladle.models.load import init_model, save_model
    from ladle.training.loop import Training

    tokenizer, take_step, steps = _tokenizer(), Training._take_step, 8
    folder = bench.folder / "resume"
    save_model(init_model(SPARSE, tokenizer, "bfloat16", 0), tokenizer, folder / "model")
    _mix(folder / "model", folder / "mixture", 40, 256)
    for deterministic in (False, True):
        trainer = {
            "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 1e-3,
            "full_determinism": deterministic,
        }  # fmt: skip
        digests = []
        for stops in (False, True):
            out = folder / f"{deterministic}-{stops}"
            try:
                Training._take_step = lambda *step: take_step(*step) or (stops and step[1] == steps // 2)  # noqa: B023
                _pretrain(bench, folder / "model", folder / "mixture", out, dtype=LOW, trainer=trainer)
            except Preempted:
                Training._take_step = take_step
                _pretrain(bench, folder / "model", folder / "mixture", out, dtype=LOW, trainer=trainer)
            digests.append(hash_file(out / "model" / "model.safetensors"))
        say("full_determinism" if deterministic else "by default", equal_bytes=digests[0] == digests[1])


PHASES = {
    phase.__name__: phase
    for phase in (machine, prepare, tiny, documents, head, attention, train, precision, kto, generation, resume)
}


def main() -> None:
    """Run the phase that is named."""
    name, size, device, folder = sys.argv[1:]
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU: --device cpu --size tiny tries the script on a CPU")
    PHASES[name](Bench(SIZES[size], torch.device(device), Path(folder)))


if __name__ == "__main__":
    main()
