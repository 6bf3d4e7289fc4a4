"""What a model does, found by running it on a few tokens before time is spent: a list of names would miss the next one.

Each probe is a function of its own and needs a loaded model, on one process or on all of several: a forward pass of two
short documents, at most with a backward pass to the embeddings. Gradients say exactly what depends on what, in every
dtype: under a mask that keeps two documents apart, the second's hidden states have a gradient of zero with respect to
the first. `probe` asks what a training has to know and gives it as `Traits`.

Shape suffixes: B rows, T positions, D hidden size, V vocabulary, N tokens, E experts, K chosen for a token.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.attention import (
    DOCUMENT_SDPA,
    VARLEN,
    attention_choices,
    attention_inputs,
    document_borders,
    to_device,
)

logger = get_logger(__name__)

CANNOT_RUN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
    StrictDataclassError,
)  # fmt: skip
"""What a model's own code raises for a configuration or inputs that it cannot take."""
FIRST, SECOND = 5, 7
"""Tokens of the two documents."""
SAME = {torch.float32: 1e-4, torch.float64: 1e-4}
SAME_IN_LOW_PRECISION = 0.05
"""Most that hidden states of the same tokens differ, relative to their norm: other kernels round otherwise."""
NOTHING = 1e-6
"""A smaller gradient, relative to the largest, is rounding."""
BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class Traits:
    """How a model has to be trained.

    Attributes:
        why_apart: why its documents cannot be packed into rows, so that each is a row of its own; None if they can.
        why_own_logits: why its logits are not hidden states times a matrix, so that it computes them itself; None if
            they are.
        router_weight: weight of the routers' auxiliary loss that its config asks for; 0 for none.
        why_not_by_document: why its attention does not go document by document where that is the fastest.
    """

    why_apart: str | None = None
    why_own_logits: str | None = None
    router_weight: float = 0.0
    why_not_by_document: str | None = None

    def choices(self) -> dict[str, Any]:
        """Return, for the record, what is done otherwise than for most models."""
        documents, logits = self.why_apart and "one a row", self.why_own_logits and "all at once"
        choices = {"documents": documents, "logits": logits, "router_aux_loss_coef": self.router_weight}
        choices["attention"] = self.why_not_by_document and f"not by document: {self.why_not_by_document}"
        return {name: choice for name, choice in choices.items() if choice}

    def sentences(self) -> list[str]:
        """Return, for a warning each, what is done otherwise and why."""
        found = [f"each document is a row of its own: {self.why_apart}"] if self.why_apart else []
        found += [f"its loss takes all logits at once: {self.why_own_logits}"] if self.why_own_logits else []
        why = self.why_not_by_document
        found += [f"it does not attend document by document, which takes less time: {why}"] if why else []
        weight = f"adds the routers' auxiliary loss that its config asks for, times {self.router_weight:g}"
        return found + [weight] * (self.router_weight > 0)


ORDINARY = Traits()


def probe(
    model: PreTrainedModel, num_rows: int = 2, autocast: str | None = None, each_document: bool = False
) -> Traits:
    """Give a model the fastest attention that keeps its packed documents apart, and return how to train it.

    Args:
        model: on the device where it will train.
        num_rows: rows of a packed batch; some kernels keep documents apart only where there is one.
        autocast: dtype of the training's passes on a GPU, where that is not the weights'.
        each_document: documents are long enough for a call of attention each.

    Raises:
        UserError: it cannot be trained as a causal language model, or the attention that was chosen joins documents.
    """
    kind, choices, whys = model.device.type, attention_choices(model, each_document), []
    dtype = getattr(torch, autocast) if autocast and kind == "cuda" else None
    with torch.autocast(kind, dtype, enabled=dtype is not None):
        router_weight = router_loss_weight(model)
        for attention in choices:
            model.set_attn_implementation(attention)
            why = _why_not_by_document(model, router_weight) if attention == VARLEN else None
            whys.append(why or why_documents_meet(model, num_rows))
            if whys[-1] is None:
                break
        if whys[-1] is not None and choices[0].startswith(("flash", "flex")):
            problem = f"attn_implementation: {choices[0]} does not fit {type(model).__name__}: {whys[-1]}"
            raise UserError(problem, "set attn_implementation: sdpa")
        require_causal(model)
        why = whys[0] if whys[-1] is None and choices[0] == VARLEN else None
        return Traits(whys[-1], why_not_linear(model), router_weight, why)


def _why_not_by_document(model: PreTrainedModel, router_weight: float) -> str | None:
    """Return why a model cannot attend by document that a few tokens in evaluation's mode would not show."""
    if router_weight:
        return "its routers' loss takes a mask"
    fields = model.config.to_dict().items()
    dropped = [name for name, value in fields if value and "att" in name and ("dropout" in name or "pdrop" in name)]
    return f"it has {dropped[0]}" if dropped else None


def warn_of(model: PreTrainedModel, traits: Traits) -> Traits:
    """Warn of everything that is not done as for most models, and return the traits."""
    for sentence in traits.sentences():
        logger.warning("%s: %s", type(model).__name__, sentence)
    return traits


def hidden_states(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """Return the last hidden states, (B, T, D)."""
    return model.get_decoder()(**inputs, use_cache=False).last_hidden_state


def refuse_multimodal(config: PreTrainedConfig) -> None:
    """Refuse a model that is more than a language model.

    Raises:
        UserError: it is one.
    """
    if config.get_text_config() is not config:
        fix = "save its text part as a model of its own, or use an architecture that works (docs/models.md)"
        raise UserError(f"a model of type {config.model_type} takes more than text", fix)


def require_text_decoder(model: PreTrainedModel) -> None:
    """Refuse a model whose hidden states cannot be reached, or that is more than a language model.

    Raises:
        UserError: it is one.
    """
    refuse_multimodal(model.config)
    name, fix = type(model).__name__, "use an architecture that works (docs/models.md)"
    decoder = model.get_decoder()
    if decoder is model or not isinstance(decoder, PreTrainedModel):
        raise UserError(f"transformers gives no way to the hidden states of {name} (its get_decoder fails)", fix)


def require_causal(model: PreTrainedModel) -> None:
    """Refuse a model whose hidden states depend on later tokens.

    Raises:
        UserError: they do, or it cannot run.
    """
    name, place = type(model).__name__, FIRST // 2
    fix = "use a causal language model (docs/models.md)"
    try:
        reached_T = _reach(model, slice(place, place + 1), input_ids=_token_ids(model)[:1, :FIRST])[0]
    except CANNOT_RUN as error:
        raise UserError(f"{name} cannot run on plain text: {first_line(error)}", fix) from error
    if reached_T[place + 1 :].any():
        raise UserError(f"{name} is not causal: hidden states of a token depend on later ones", fix)


def why_documents_meet(model: PreTrainedModel, num_rows: int = 2) -> str | None:
    """Return why documents packed into a row are not as by themselves; None if they are.

    A row is packed by positions that restart, without a mask. The second document's hidden states must not depend on
    the first's tokens, nor on another row's, and must be those of the document alone: under the config's sliding
    windows, and under some that are shorter than the documents, for which masks are made in another way.
    """
    windows = _windows(model)
    for values in (windows, dict.fromkeys(windows, FIRST - 2)):
        model.config.update(values)
        why = _why_documents_meet(model, num_rows)
        model.config.update(windows)
        if why is not None or not windows:
            return why
    return None


def _windows(model: PreTrainedModel) -> dict[str, int]:
    """Return the sizes of the windows that a config names."""
    names = ("window", "window_size", "attention_chunk_size")
    fields = model.config.to_dict().items()
    return {name: value for name, value in fields if name.endswith(names) and type(value) is int}


def _why_documents_meet(model: PreTrainedModel, num_rows: int) -> str | None:
    ids_BT = _token_ids(model)[:num_rows]
    positions_BT = torch.tensor([[*range(FIRST), *range(SECOND)]]).repeat(len(ids_BT), 1)
    rows = {"input_ids": ids_BT, "position_ids": positions_BT} | document_borders(positions_BT)
    inputs, second = attention_inputs(model, to_device(rows, model.device)), slice(FIRST, None)
    try:
        reached_BT = _reach(model, second, **inputs)
        with torch.no_grad():
            packed_TD = hidden_states(model, **inputs)[0, second]
            alone_TD = hidden_states(model, input_ids=ids_BT[:1, second])[0]
    except (*CANNOT_RUN, UserError) as error:
        return f"it cannot run on packed rows ({first_line(error)})"
    if reached_BT[0, :FIRST].any() or reached_BT[1:].any():
        return "documents packed into a row see each other"
    if not reached_BT[0, second].any():
        return "whether documents packed into a row see each other cannot be seen"
    if difference(packed_TD, alone_TD) > most_difference(alone_TD):
        return "a document behind another one in a row is not as by itself (its positions do not restart)"
    return None


def can_share(model: PreTrainedModel) -> bool:
    """Return whether documents of a row that continue the tokens at its head (`num_shared`) are as by themselves.

    Under windows they are not: masks are made for them that keep documents apart.
    """
    if model.config._attn_implementation != DOCUMENT_SDPA or _windows(model):
        return False
    ids_BT = _token_ids(model)
    row_T, alone_T = torch.cat([ids_BT[0], ids_BT[1, FIRST:]]), torch.cat([ids_BT[0, :FIRST], ids_BT[1, FIRST:]])
    places_T = torch.tensor([*range(FIRST + SECOND), *range(FIRST, FIRST + SECOND)], device=model.device)
    try:
        with torch.no_grad():
            rows = {"input_ids": row_T[None], "position_ids": places_T[None], "num_shared": FIRST}
            shared_TD = hidden_states(model, **rows)[0, -SECOND:]
            alone_TD = hidden_states(model, input_ids=alone_T[None])[0, -SECOND:]
    except CANNOT_RUN:
        return False
    return difference(shared_TD, alone_TD) <= most_difference(alone_TD)


def why_not_linear(model: PreTrainedModel) -> str | None:
    """Return why a model's logits are not its last hidden states times a matrix; None if they are.

    The head's output is exchanged for numbers large enough for any soft cap, which must come out unchanged.
    """
    head = model.get_output_embeddings()
    weight_VD = getattr(head, "weight", None)
    if head is None or weight_VD is None:
        return "it has no output matrix"
    if getattr(head, "bias", None) is not None:
        return "its output head has a bias"
    seen: dict[str, torch.Tensor] = {}

    def exchange(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen["input"], seen["output"] = inputs[0], output
        seen["exchanged"] = torch.linspace(-100, 100, output.shape[-1]).to(output).expand_as(output)
        return seen["exchanged"]

    def note_hidden(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen["hidden"] = output.last_hidden_state

    hooks = head.register_forward_hook(exchange), model.get_decoder().register_forward_hook(note_hidden)
    with hooks[0], hooks[1], torch.no_grad():
        logits_BTV = type(model).forward(model, input_ids=_token_ids(model)[:1], use_cache=False).logits
    if seen.keys() < {"input", "hidden"}:
        return "its head is not a module by itself"
    if not torch.equal(seen["input"], seen["hidden"]):
        return "its hidden states are changed before its head"
    product_BTV = torch.nn.functional.linear(seen["input"], weight_VD)
    if difference(seen["output"], product_BTV) > most_difference(product_BTV):
        return "its head is more than a matrix"
    if not torch.equal(logits_BTV.float(), seen["exchanged"].float()):
        return "its logits are changed after its head (a soft cap, a scale)"
    return None


def router_loss_weight(model: PreTrainedModel) -> float:
    """Return the weight of the routers' auxiliary loss that a config asks for (`output_router_logits`); 0 for none.

    Raises:
        UserError: it asks for one that the model does not compute.
    """
    if not getattr(model.config, "output_router_logits", False):
        return 0.0
    with torch.no_grad():
        outputs = type(model).forward(model, input_ids=_token_ids(model)[:1], use_cache=False)
    weight = getattr(model.config, "router_aux_loss_coef", None)
    if getattr(outputs, "aux_loss", None) is None or weight is None:
        name = type(model).__name__
        problem = f"config.json asks for the routers' loss (output_router_logits: true), and {name} computes none"
        raise UserError(problem, "set output_router_logits to false in its config.json")
    return float(weight)


def is_deterministic(model: PreTrainedModel) -> bool:
    """Return whether two equal passes, in the mode that the model is in, give equal hidden states."""
    ids_BT = _token_ids(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        return torch.equal(hidden_states(model, input_ids=ids_BT), hidden_states(model, input_ids=ids_BT))


def longest_apart(config: Any) -> float:
    """Return up to how many tokens a row's positions are encoded the same beside any others."""
    text = config.get_text_config()
    ropes = getattr(text, "rope_parameters", None) or {}
    limits = [
        rope.get("original_max_position_embeddings") or text.max_position_embeddings
        for rope in ([ropes] if "rope_type" in ropes else ropes.values())  # one, or one a type of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=math.inf)


def require_positions(model: PreTrainedModel, num_tokens: int) -> None:
    """Check that a model has positions for a document of a length; on a CPU: a GPU does not survive a wrong index.

    A length that changes how other documents of a batch are encoded is warned of.

    Raises:
        UserError: its learned positions end before.
    """
    if num_tokens > (apart := longest_apart(model.config)):
        text = "%s: a document of more than %s tokens changes how positions are encoded in what shares its batch"
        logger.warning(text, type(model).__name__, f"{apart:,}")
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int) or num_tokens <= most:
        return
    seen = f"a document has {num_tokens:,} tokens and {type(model).__name__} positions for {most:,}"
    try:
        with torch.no_grad():
            hidden_states(model, input_ids=_token_ids(model)[:1, :1].expand(1, num_tokens))
    except CANNOT_RUN as error:
        raise UserError(seen, f"set a length of at most {most}, or use a model with more positions") from error
    logger.warning("%s: it was not trained for more", seen)


class Router(NamedTuple):
    """A router of experts, and the module that holds its bias."""

    module: torch.nn.Module
    holder: torch.nn.Module

    @property
    def bias(self) -> torch.Tensor:
        """The bias of each expert, of E elements."""
        return getattr(self.holder, BIAS)


def find_routers(model: PreTrainedModel) -> dict[str, Router]:
    """Return the routers with a bias by the names of the modules that hold it, as a forward pass shows them.

    The router itself, the module around it or one in it may hold the bias; a router is what gives a decision.
    """
    modules = dict(model.named_modules())
    holders = {name: module for name, module in modules.items() if hasattr(module, BIAS)}
    found: dict[str, Router] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name, holder in holders.items():

            def note(module: torch.nn.Module, _: Any, outputs: Any, name: str = name, holder: Any = holder) -> None:
                if name not in found and decision(outputs, getattr(holder, BIAS).numel()) is not None:
                    found[name] = Router(module, holder)

            for module in (holder, *holder.children(), modules[name.rpartition(".")[0]]):
                hooks.enter_context(module.register_forward_hook(note))
        if holders:
            hidden_states(model, input_ids=_token_ids(model))
    return {name: found[name] for name in holders if name in found}


def decision(outputs: Any, num_experts: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return a router's logits (N, E) and the experts it chose (N, K) from its outputs; None if they are not there."""
    tensors = [value for value in outputs if torch.is_tensor(value)] if isinstance(outputs, tuple) else []
    logits = [one for one in tensors if one.is_floating_point() and one.shape[-1] == num_experts]
    chosen = [one for one in tensors if one.dtype in (torch.int64, torch.int32)]
    return (logits[0], chosen[0]) if logits and len(chosen) == 1 else None


def difference(one_TD: torch.Tensor, other_TD: torch.Tensor) -> float:
    """Return how much most tokens' vectors differ, relative to their norm."""
    one_TD, other_TD = one_TD.float(), other_TD.float()
    return ((one_TD - other_TD).norm(dim=-1) / other_TD.norm(dim=-1).clamp(min=1e-30)).median().item()


def most_difference(states_TD: torch.Tensor) -> float:
    """Return how much states of the same tokens may differ, by the dtype that they were computed in."""
    is_low = torch.is_autocast_enabled(states_TD.device.type)
    return SAME_IN_LOW_PRECISION if is_low else SAME.get(states_TD.dtype, SAME_IN_LOW_PRECISION)


def _token_ids(model: PreTrainedModel) -> torch.Tensor:
    """Return two rows of different plain tokens, (2, FIRST + SECOND)."""
    config = model.config
    special = {getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    plain = [token for token in range(config.vocab_size) if token not in special][: 2 * (FIRST + SECOND)]
    ids = torch.tensor(plain, device=model.device)
    return ids[torch.arange(2 * (FIRST + SECOND)) % len(ids)].reshape(2, -1)


def _reach(model: PreTrainedModel, places: slice, **inputs: Any) -> torch.Tensor:
    """Return which tokens the first row's hidden states at some places depend on, bool, (B, T)."""
    embedded: list[torch.Tensor] = []

    def catch(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some scale it in place

    with model.get_input_embeddings().register_forward_hook(catch), torch.enable_grad():
        hidden_TD = hidden_states(model, **inputs)[0, places].float()
        # an uneven sum: that of the squares is the same for every normalised vector
        uneven_D = torch.arange(hidden_TD.shape[-1], device=hidden_TD.device).cos()
        gradients = torch.autograd.grad((hidden_TD * uneven_D).sum(), embedded, allow_unused=True)
    sizes_BT = torch.stack([one.float().abs().amax(-1) for one in gradients if one is not None]).amax(0)
    return sizes_BT > NOTHING * sizes_BT.max()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
