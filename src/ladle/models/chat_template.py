"""ChatML as the chat template of a base model that has none, as TRL's `setup_chat_format` gives it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ladle.log import get_logger

logger = get_logger(__name__)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
END_OF_TURN = "<|im_end|>"


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a chat template ChatML's, and say so.

    The vocabulary stays as it is: where it lacks ChatML's markers they are ordinary text, several tokens each.
    """
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
        is_known = tokenizer.convert_tokens_to_ids(END_OF_TURN) not in (None, tokenizer.unk_token_id)
        logger.warning(
            "the tokenizer has no chat template: using ChatML%s",
            "" if is_known else f", whose markers ({END_OF_TURN}) are ordinary text in this vocabulary",
        )
