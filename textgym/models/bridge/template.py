"""The text that a reward model expects around prompt and completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from textgym.checks import check_flag, check_text
from textgym.errors import InvalidArgumentError

__all__ = ["TextTemplate"]

_MARKS = "\ue000\ue001"
"""Two characters for private use, which no template has."""


@dataclass(frozen=True)
class TextTemplate:
    """Literal text before the prompt, between prompt and completion, and behind the completion.

    Attributes:
        before: Text before the prompt.
        between: Text between prompt and completion.
        after: Text behind the completion.
        has_special_tokens: Whether the text has the special tokens, as that of a chat template
            does. Otherwise the tokenizer adds its own, such as [CLS] and [SEP].
    """

    before: str = ""
    between: str = ""
    after: str = ""
    has_special_tokens: bool = False

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            InvalidArgumentError: If a part is not text, or the flag is neither True nor False.
        """
        for name in ("before", "between", "after"):
            check_text(name, getattr(self, name))
        check_flag("has_special_tokens", self.has_special_tokens)

    @classmethod
    def of(cls, template: str | TextTemplate | None, tokenizer: Any) -> TextTemplate:
        """Build a template from whatever the user passes.

        Args:
            template: Text with ``{prompt}`` and ``{completion}``; ``"chat"`` for the tokenizer's
                chat template, with the prompt as the user's message and the completion as the
                assistant's; a template, which is returned as it is; None for nothing around them.
            tokenizer: The reward model's.

        Raises:
            InvalidArgumentError: If the text lacks one of the two, or the tokenizer has no chat
                template.

        >>> TextTemplate.of("Q: {prompt} A: {completion}", None)
        TextTemplate(before='Q: ', between=' A: ', after='', has_special_tokens=False)
        """
        if template is None:
            return cls()
        if isinstance(template, TextTemplate):
            return template
        if template == "chat":
            return cls._of_chat(tokenizer)
        check_text("template", template, 'must be text with {prompt} and {completion}, or "chat"')
        before, mark, rest = template.partition("{prompt}")
        between, other_mark, after = rest.partition("{completion}")
        if not mark or not other_mark:
            raise InvalidArgumentError(
                "template",
                template,
                'must have {prompt} and, behind it, {completion}, or be "chat"',
            )
        return cls(before, between, after)

    @classmethod
    def _of_chat(cls, tokenizer: PreTrainedTokenizerBase) -> TextTemplate:
        if not getattr(tokenizer, "chat_template", None):
            raise InvalidArgumentError(
                "template", "chat", "the reward model's tokenizer has no chat template"
            )
        messages = [
            {"role": role, "content": mark}
            for role, mark in zip(("user", "assistant"), _MARKS, strict=True)
        ]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        before, first, rest = text.partition(_MARKS[0])
        between, second, after = rest.partition(_MARKS[1])
        if not first or not second:
            raise InvalidArgumentError(
                "template", "chat", "the chat template does not show both messages"
            )
        return cls(before, between, after, has_special_tokens=True)

    def fill(self, prompt: str, completion: str) -> str:
        """The whole text."""
        return self.before + prompt + self.between + completion + self.after

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands around prompt and completion."""
        return not (self.before or self.between or self.after)
