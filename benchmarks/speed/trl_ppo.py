"""trl's PPO on textgym's embedded models: the other side of the comparison in iteration.py.

Runs in an environment of its own (``make trl-env``), where textgym cannot be imported. Models and
prompts come from files. Requests are lines of JSON on standard input, answers are lines of JSON on
standard output::

    .venv-trl/bin/python benchmarks/speed/trl_ppo.py settings.json
    → {"ready": ...}                           versions and threads
    ← {"iterations": 2}                        a block of PPO iterations
    → {"generate": 0.6, "reward": ...}         one line for each: seconds, mean score, KL
    ← {"check": "in.npz", "output": "out.npz"} logits and scores of given texts

The loop is that of trl's examples (https://github.com/huggingface/trl/blob/v0.7.4/examples/scripts/
ppo.py): generate, reward, step. It leaves out what textgym does not do either: completions of the
reference policy, decoding for a log, and a text pipeline around the reward model.
"""

# mypy: ignore-errors
# mypy sees today's packages, and this file is for those of 2023.
from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside the old packages
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model
    from trl.core import LengthSampler


@dataclass(frozen=True)
class Settings:
    """What iteration.py asks for."""

    language_model: str
    """Folder of the policy."""
    reward_model: str
    """Folder of the reward model."""
    prompts: list[list[int]]
    """Token ids; each iteration takes the next ``ppo["batch_size"]`` of them, in a circle."""
    min_new_tokens: int = 8
    """EOS is not generated before so many tokens; also the smallest length that is drawn."""
    max_new_tokens: int = 16
    """Largest length that is drawn."""
    generate_batch_size: int = 4
    """Prompts that are continued together; they share a length. 0: one by one."""
    bfloat16: bool = False
    """Accelerate's mixed precision in the step, and autocast in generation and scoring."""
    fused_adam: bool = False
    """PyTorch's fused Adam, instead of the Adam that trl makes."""
    attention: str = "sdpa"
    """How transformers computes attention: "sdpa" or "eager"."""
    threads: int = 1
    """PyTorch's threads."""
    seed: int = 0
    """Of everything."""
    ppo: dict = field(default_factory=dict)
    """Fields of trl's PPOConfig."""


# --- Models ---------------------------------------------------------------------------------------


class NormedLinear(nn.Module):
    """A projection to queries or keys with Qwen3's norm of each head behind it.

    Norming before the heads are transposed is the same as after it, and the rotation follows.

    Args:
        linear: The projection.
        head_dim: Size of a head.
        eps: Of the norm.
    """

    def __init__(self, linear: nn.Linear, head_dim: int, eps: float) -> None:
        super().__init__()
        self.linear = linear
        self.norm = LlamaRMSNorm(head_dim, eps=eps)
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> Tensor:
        """Project (batch, num_tokens, hidden_size) to (batch, num_tokens, heads * head_dim)."""
        projected = self.linear(x)
        return self.norm(projected.unflatten(-1, (-1, self.head_dim))).flatten(-2)


def load_qwen3(
    kind: type[PreTrainedModel], folder: str | Path, attention: str = "sdpa"
) -> PreTrainedModel:
    """Load a Qwen3 model into this transformers' Llama, which differs by the norms alone.

    Args:
        kind: The Llama class, LlamaForCausalLM or LlamaForSequenceClassification.
        folder: config.json and model.safetensors.
        attention: "sdpa" or "eager".

    Returns:
        The model in float32 and evaluation mode.
    """
    theirs = json.loads((Path(folder) / "config.json").read_text())
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
    )
    assert theirs["head_dim"] * theirs["num_attention_heads"] == theirs["hidden_size"]
    assert not theirs["attention_bias"]
    assert not theirs["use_sliding_window"]
    config = LlamaConfig(
        **{name: theirs[name] for name in sizes},
        rope_theta=theirs["rope_parameters"]["rope_theta"],
        num_labels=len(theirs.get("id2label", "ab")),
    )
    config._attn_implementation = attention
    model = kind(config)
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj"):
            linear = getattr(layer.self_attn, name)
            normed = NormedLinear(linear, theirs["head_dim"], config.rms_norm_eps)
            setattr(layer.self_attn, name, normed)
    weights = {}
    for name, weight in load_file(Path(folder) / "model.safetensors").items():
        for part in ("q", "k"):
            name = name.replace(f"{part}_proj.weight", f"{part}_proj.linear.weight")
            name = name.replace(f"{part}_norm.weight", f"{part}_proj.norm.weight")
        weights[name] = weight.float()
    model.load_state_dict(weights, strict=True)
    return model.float().eval()


class Scorer:
    """The reward model: (logit of positive − logit of negative − mean) / standard deviation.

    Args:
        folder: Its folder.
        attention: "sdpa" or "eager".
    """

    def __init__(self, folder: str | Path, attention: str) -> None:
        self.model = load_qwen3(LlamaForSequenceClassification, folder, attention)
        config = json.loads((Path(folder) / "config.json").read_text())
        self.mean, self.std = config["score_mean"], config["score_std"]

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score texts that are padded on the right, (batch, num_tokens); float32 (batch,)."""
        # The class's own forward looks for padding ids, which a policy may generate.
        hidden = self.model.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        last = attention_mask.sum(dim=1) - 1
        logits = self.model.score(hidden[torch.arange(len(last)), last]).float()
        return (logits[:, 1] - logits[:, 0] - self.mean) / self.std


def right_padded(texts: list[Tensor], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of ragged texts, both int64 (batch, longest text)."""
    masks = [torch.ones_like(text) for text in texts]
    return (
        nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_token_id),
        nn.utils.rnn.pad_sequence(masks, batch_first=True),
    )


def padding_tokenizer(pad: int, bos: int, eos: int) -> PreTrainedTokenizerFast:
    """A tokenizer that can pad, which is all that trl needs it for here.

    The tokenizers package of 2023 cannot read the file of the embedded tokenizer.
    """
    vocabulary = {"<pad>": pad, "<s>": bos, "</s>": eos}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="right",
    )


# --- PPO ------------------------------------------------------------------------------------------


class Loop:
    """The usual loop of trl: generate, reward, step."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        language_model = load_qwen3(LlamaForCausalLM, settings.language_model, settings.attention)
        ids = language_model.config
        self.pad_token_id = ids.pad_token_id
        self.scorer = Scorer(settings.reward_model, settings.attention)
        # As `accelerate launch --cpu --mixed_precision ...` does. trl makes an Accelerator for each
        # model before that of the trainer, and all of them must agree.
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if settings.bfloat16 else "no"
        model = AutoModelForCausalLMWithValueHead.from_pretrained(language_model)
        config = PPOConfig(**settings.ppo, seed=settings.seed)
        optimizer = None  # trl makes an Adam
        if settings.fused_adam:
            optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        self.trainer = PPOTrainer(
            config,
            model,
            create_reference_model(model),
            padding_tokenizer(ids.pad_token_id, ids.bos_token_id, ids.eos_token_id),
            optimizer=optimizer,
        )
        self.draw_length = LengthSampler(settings.min_new_tokens, settings.max_new_tokens + 1)
        self.sampling = {
            "do_sample": True,
            "top_k": 0,
            "top_p": 1.0,
            "min_new_tokens": settings.min_new_tokens,
            "pad_token_id": ids.pad_token_id,
            "eos_token_id": ids.eos_token_id,
        }
        self.position = 0  # of the next prompt

    @property
    def language_model(self) -> PreTrainedModel:
        """The policy, without its value head."""
        return self.trainer.accelerator.unwrap_model(self.trainer.model).pretrained_model

    def mixed_precision(self) -> contextlib.AbstractContextManager:
        """For what trl runs outside of accelerate's own mixed precision."""
        if not self.settings.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast("cpu", torch.bfloat16)

    def iterate(self) -> dict[str, float]:
        """One iteration: its seconds by part, the mean score, KL and length of its episodes."""
        size, prompts = self.trainer.config.batch_size, self.settings.prompts
        picked = [(self.position + i) % len(prompts) for i in range(size)]
        self.position += size
        queries = [torch.tensor(prompts[i]) for i in picked]
        start = time.perf_counter()
        responses = self.generate(queries)
        generated = time.perf_counter()
        texts = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
        with self.mixed_precision():
            scores = self.scorer(*right_padded(texts, self.pad_token_id))
        rewards = list(scores.clone())
        scored = time.perf_counter()
        statistics = self.trainer.step(queries, responses, rewards)
        stepped = time.perf_counter()
        return {
            "generate": generated - start,
            "reward": scored - generated,
            "step": stepped - scored,
            "score": scores.mean().item(),
            "kl": float(statistics["objective/kl"]),
            "length": sum(map(len, responses)) / size,
        }

    def generate(self, queries: list[Tensor]) -> list[Tensor]:
        """Completions of ragged prompts, up to and including EOS."""
        arguments = {
            "return_prompt": False,
            "length_sampler": self.draw_length,
            **self.sampling,
        }
        with self.mixed_precision():
            if not self.settings.generate_batch_size:
                return [self.trainer.generate(query, **arguments)[0] for query in queries]
            return self.trainer.generate(
                queries, batch_size=self.settings.generate_batch_size, **arguments
            )

    @torch.no_grad()
    def check(self, texts: str, output: str) -> None:
        """Write logits (batch, num_tokens, vocab) and scores (batch,) of texts in an .npz file."""
        arrays = np.load(texts)
        ids, mask = (torch.from_numpy(arrays[name]) for name in ("input_ids", "attention_mask"))
        logits = self.language_model(input_ids=ids, attention_mask=mask).logits
        np.savez(output, logits=logits.float().numpy(), scores=self.scorer(ids, mask).numpy())


def main(path: str) -> None:
    settings = Settings(**json.loads(Path(path).read_text()))
    torch.set_num_threads(settings.threads)
    answers, sys.stdout = (
        sys.stdout,
        sys.stderr,
    )  # so that nothing else is printed between the answers

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    loop = Loop(settings)
    packages = ("trl", "transformers", "accelerate", "torch")
    answer(
        ready={package: version(package) for package in packages},
        threads=torch.get_num_threads(),
    )
    for line in sys.stdin:
        request = json.loads(line)
        if "check" in request:
            loop.check(request["check"], request["output"])
            answer(written=request["output"])
        for _ in range(request.get("iterations", 0)):
            answer(**loop.iterate())


if __name__ == "__main__":
    main(*sys.argv[1:])
