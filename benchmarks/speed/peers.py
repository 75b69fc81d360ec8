"""Sampling against the other ways to sample on a processor.

The embedded model in float32, completions of 32 tokens at temperature 1 over the whole vocabulary:

- ``generate`` of transformers, as it comes;
- the same with a static cache and a compiled forward pass;
- ``generate_batch``, the continuous batching of transformers;
- CTranslate2, an engine of its own (``pip install ctranslate2``), which needs the weights in its
  own format. Where the weights change in every iteration, so does the file. So it is given twice:
  with the conversion, and without, as a ceiling.

Only the rollout steps an environment, scores every completion and notes the log-probabilities. The
first call of each, which compiles or warms up, is not timed, but its seconds are in the details.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from harness.timing import side_by_side
from speed.ratios import Row, result
from textgym.agents import ActionRules, LanguageModelPolicy, collect_episodes
from textgym.agents.environment import left_padded
from textgym.models import load_language_model, load_tokenizer

__all__ = ["measure"]

NUM_TOKENS = 32
BATCHES = (16, 64)
GOAL = ">= 1.2"


def measure(quick: bool = False) -> list[Row]:
    """Tokens per second of a rollout ÷ those of each peer; more is better.

    Args:
        quick: Small sizes, and only ``generate``; for tests.
    """
    return [row for batch in ((2,) if quick else BATCHES) for row in _compare(batch, quick)]


def _compare(batch: int, quick: bool) -> list[Row]:
    num_tokens = 4 if quick else NUM_TOKENS
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        batch,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    model = load_language_model("embedded")
    observations, _ = envs.reset(seed=0)
    ids, mask = (torch.from_numpy(array) for array in left_padded(observations, 0))
    prompts = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
    functions = {"rollout": _rollout(model, envs, num_tokens)}
    functions |= _transformers(model, ids, mask, prompts, num_tokens, only_generate=quick)
    if not quick and importlib.util.find_spec("ctranslate2"):
        functions |= _ctranslate2(model, prompts, num_tokens)
    first = {name: _seconds(function) for name, function in functions.items()}
    times = side_by_side(functions, rounds=2 if quick else 5, min_seconds=0.0)
    return [
        result(
            "peers",
            f"embedded float32, {batch} x {num_tokens} tokens",
            f"tokens/s of the rollout with scores / of {name}",
            times.ratio(name, "rollout"),
            None if "conversion" in name else GOAL,
            tokens_per_second={
                side: round(batch * num_tokens / times.median(side), 1)
                for side in ("rollout", name)
            },
            seconds_of_the_first_call=round(first[name], 2),
            seconds={side: times.seconds[side] for side in ("rollout", name)},
        )
        for name in functions
        if name != "rollout"
    ]


def _rollout(model: PreTrainedModel, envs: VectorEnv, num_tokens: int) -> Callable[[], object]:
    base: Any = envs.unwrapped
    rules = ActionRules(
        int(base.single_action_space.n), base.tokenizer.eos_token_id, min_new_tokens=num_tokens
    )
    policy = LanguageModelPolicy(model, rules)
    generator = torch.Generator().manual_seed(0)
    return lambda: collect_episodes(policy, envs, envs.num_envs, generator)


def _transformers(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    prompts: list[list[int]],
    num_tokens: int,
    only_generate: bool,
) -> dict[str, Callable[[], object]]:
    length = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
    sampling = {"do_sample": True, "top_k": 0, "pad_token_id": 0}
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    # No token ends a completion: the minimum length is not enforced in continuous batching.
    config = GenerationConfig(**sampling, eos_token_id=-1, max_new_tokens=num_tokens)

    @torch.no_grad()
    def generate(**options: Any) -> object:
        return model.generate(**batch, **sampling, **length, **options)

    if only_generate:
        return {"generate": generate}
    compile_config = CompileConfig(mode="default")
    compile_config._compile_all_devices = True  # Otherwise GPUs only.
    return {
        "generate": generate,
        "generate_batch": lambda: model.generate_batch(prompts, generation_config=config),
        "generate, compiled with a static cache": lambda: generate(
            cache_implementation="static", compile_config=compile_config
        ),
    }


def _ctranslate2(
    model: PreTrainedModel, prompts: list[list[int]], num_tokens: int
) -> dict[str, Callable[[], object]]:
    import ctranslate2

    tokenizer = load_tokenizer("embedded")
    texts = [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
    folder = Path(tempfile.mkdtemp(prefix="ctranslate2-"))
    tokenizer.save_pretrained(folder / "transformers")

    def engine() -> Any:
        model.save_pretrained(folder / "transformers")
        converter = ctranslate2.converters.TransformersConverter(str(folder / "transformers"))
        converted = converter.convert(str(folder / "converted"), force=True)
        threads = torch.get_num_threads()
        return ctranslate2.Generator(
            converted, device="cpu", compute_type="float32", intra_threads=threads
        )

    def generate(generator: Any) -> object:
        return generator.generate_batch(
            texts,
            min_length=num_tokens,
            max_length=num_tokens,
            sampling_topk=0,
            include_prompt_in_result=False,
        )

    ready = engine()
    return {
        "CTranslate2": lambda: generate(ready),
        "CTranslate2, with the conversion of changed weights": lambda: generate(engine()),
    }


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
