"""The templates of prompts as chat templates, for servers that render conversations themselves."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from roadint.data.prompts import Template, prompt_ids, render

_MARK, _PROBE = "\0", 'Say "Grüße", {twice}.'
_IS_ANSWER = 'message.role == "assistant" and loop.previtem.role == "user"'


def chat_template(template: Template, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A chat template, in Jinja, that renders a conversation to the tokens of `prompt_ids`.

    Messages of users are framed, their answers follow, and others stand as they are, with empty
    lines between.

    Args:
        template: As in `render`.
        tokenizer: The model's.

    Returns:
        The chat template; None for "chat", where it is the tokenizer's own, and where the tokenizer
        begins a text in a way that a chat template can't.

    Raises:
        RoadError: for "chat", where the tokenizer has none.
    """
    before, after = render(template, _MARK, tokenizer).split(_MARK)
    if template == "chat":
        return None
    ids = prompt_ids(tokenizer, template, _PROBE)
    bare = tokenizer(before + _PROBE + after, add_special_tokens=False)["input_ids"]
    start = tokenizer.convert_ids_to_tokens(ids[: len(ids) - len(bare)])
    user = f"{_literal(before)} + message.content + {_literal(after)}"
    written = (
        f"{{{{ {_literal(''.join(start))} }}}}"
        "{% for message in messages %}"
        f"{{% if not loop.first and not ({_IS_ANSWER}) %}}{{{{ {_literal(chr(10) * 2)} }}}}"
        "{% endif %}"
        f'{{% if message.role == "user" %}}{{{{ {user} }}}}'
        "{% else %}{{ message.content }}{% endif %}"
        "{% endfor %}"
    )
    return written if _rendered(tokenizer, written, _PROBE) == ids else None


def _literal(text: str) -> str:
    return json.dumps(text)


def _rendered(tokenizer: PreTrainedTokenizerBase, written: str, instruction: str) -> list[int]:
    messages = [{"role": "user", "content": instruction}]
    text: Any = tokenizer.apply_chat_template(
        messages, chat_template=written, tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
