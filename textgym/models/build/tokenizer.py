"""The tokenizer of the embedded models: byte-level BPE, trained on the training reviews."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["BOS_TOKEN", "EOS_TOKEN", "PAD_TOKEN", "train_tokenizer"]

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = "<pad>", "<s>", "</s>"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, folder: Path
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer and save it as a Hugging Face folder.

    Padding, start and end are three different tokens, so none is mistaken for another. Encoding
    adds the start token, which tells the language model that a review begins. It never adds the end
    token, since a prompt is meant to go on.

    Args:
        texts: The training texts, without any held-out text.
        vocab_size: Number of tokens, including special ones.
        max_length: Longest sequence of the models, in tokens (``model_max_length``).
        folder: Folder to save the tokenizer to.

    Returns:
        The tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A $B",
        special_tokens=[(BOS_TOKEN, tokenizer.token_to_id(BOS_TOKEN))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast
