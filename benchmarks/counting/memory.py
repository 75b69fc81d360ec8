"""Bytes that an agent keeps, and those of one pass, counted from shapes.

What is kept from iteration to iteration, in bytes per parameter::

                                   all weights      LoRA: frozen   LoRA: adapters
    weights                             4              4 or 2             4
    gradients                           4                -                4
    AdamW's two moments                 8                -                8
    the copy that undoes an iteration  12                -               12
    reference policy                    4                -               -

All weights are trained in float32, whatever ``dtype`` says, and so are adapters. The copy
(``agents/snapshot.py``) holds weights and moments. Gradients are freed no earlier than before the
next backward pass, so a rollout holds them, too. A model that was loaded by name stays in the
library's cache beside all this, see :attr:`Memory.loaded`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Shape
from .work import Choices, Work

__all__ = ["Memory", "activations", "count_memory"]

_CHUNK_OF_CPU, _CHUNK_OF_DEVICES = 2**19, 2**26  # of logits, as in agents/distribution.py
_COPIES_OF_CHUNK = 4  # float32, while log-probabilities and their gradient are computed


@dataclass(frozen=True)
class Memory:
    """Bytes. The first six are kept; of the others, those of one stage are needed at a time.

    Attributes:
        weights: Of the policy, value head and adapters included.
        gradients: Of what is trained.
        moments: AdamW's.
        snapshot: The copy of trained weights and moments that undoes an interrupted iteration.
        reference: The reference policy; 0 with LoRA, which switches its adapters off.
        reward_model: Its weights.
        loaded: A second copy of the weights, if the caller keeps the model that it passed, or if
            the model was loaded by name. Not in what is kept.
        construction: While the agent is made on a CPU: the reward model, the model that was passed,
            and its copies. With a GPU they meet in the memory of the host.
        key_value_cache: Of the rollout.
        decode_copies: Copies of weights that the rollout reads newest tokens with.
        rollout_logits: Logits of policy and reference policy over all episodes, before the update.
        autocast_copies: bfloat16 copies of the matrices, in the update.
        activations: What the layers keep for the backward pass of a minibatch.
        minibatch_logits: Logits of a minibatch, their gradient, and the pieces that are worked on.
    """

    weights: float
    gradients: float
    moments: float
    snapshot: float
    reference: float
    reward_model: float
    loaded: float
    construction: float
    key_value_cache: float
    decode_copies: float
    rollout_logits: float
    autocast_copies: float
    activations: float
    minibatch_logits: float

    @property
    def kept(self) -> float:
        """From iteration to iteration."""
        return (
            self.weights
            + self.gradients
            + self.moments
            + self.snapshot
            + self.reference
            + self.reward_model
        )

    @property
    def update(self) -> float:
        """Beyond what is kept, in the update."""
        return self.autocast_copies + self.activations + self.minibatch_logits

    @property
    def peak(self) -> float:
        """What is kept, and the hungriest stage; or making the agent, if that takes more."""
        rollout = self.key_value_cache + self.decode_copies
        iteration = self.kept + max(rollout, self.rollout_logits, self.update)
        return max(iteration, self.construction)

    def sharded(self, number: int) -> float:
        """The peak of each of several GPUs that hold a part of the policy (``shard=True``).

        Each plays a part of the episodes, and gathers and casts all weights for it.

        Args:
            number: Of GPUs.
        """
        own = (self.kept - self.reward_model) / number + self.reward_model
        rollout = self.weights + self.autocast_copies + self.key_value_cache / number
        update = (self.activations + self.minibatch_logits) / number
        return own + max(rollout, self.rollout_logits / number, update)


def count_memory(policy: Shape, reward: Shape, work: Work, choices: Choices) -> Memory:
    """Count the memory of an agent of PPO with its critic on the policy's head.

    Args:
        policy: The language model.
        reward: The reward model, in the dtype that is computed in.
        work: The episodes.
        choices: How the policy is trained.
    """
    value_head = policy.width + 1
    size = choices.size
    if choices.rank:
        adapters = policy.adapters(choices.rank)
        trained = 4 * (adapters + value_head)
        weights = size * policy.parameters + trained
        reference, autocast = 0, 0
    else:
        trained = 4 * (policy.parameters + value_head)
        weights, reference = trained, trained
        autocast = 2 * (policy.matrices + policy.head) if choices.is_bfloat16 else 0
    lean = policy.parameters <= 1e9 and not choices.rank  # as in textgym.models.incremental.lean
    states = 4 if choices.is_on_cpu and lean else size
    chunk = _CHUNK_OF_CPU if choices.is_on_cpu else _CHUNK_OF_DEVICES
    logits = work.minibatch * work.steps * policy.vocabulary
    scorer = size * reward.scorer
    loaded = (size if choices.rank else 4) * policy.parameters
    return Memory(
        weights=weights,
        gradients=trained,
        moments=2 * trained,
        snapshot=3 * trained,
        reference=reference,
        reward_model=scorer,
        loaded=loaded,
        construction=scorer + loaded + weights + reference if choices.is_on_cpu else 0,
        key_value_cache=2 * states * policy.layers * policy.keys * work.episodes * _columns(work),
        decode_copies=size * (policy.matrices + policy.head) if lean else autocast,
        rollout_logits=2 * size * work.episodes * work.steps * policy.vocabulary,
        autocast_copies=autocast,
        activations=activations(policy, work, choices),
        minibatch_logits=2 * size * logits + _COPIES_OF_CHUNK * 4 * min(chunk, logits),
    )


def _columns(work: Work) -> int:
    """Columns of the cache's buffers, which double when they are full."""
    columns = work.prompt
    while columns < work.fed:
        columns = 2 * (columns + 1)
    return columns


def activations(shape: Shape, work: Work, choices: Choices) -> float:
    """What the layers keep for the backward pass of a minibatch, in bytes.

    Per token and layer, with x the input of a norm, x̂ what it is before it is scaled, and y after:

    - Llama, Qwen2: x, x̂ and y of two norms, queries, keys, values, the attention's output, and in
      the MLP the gate before and after its activation, the other input, and their product;
    - Qwen3 has norms of queries and keys beside these;
    - GPT-2: x and y of two norms, queries, keys, values, the attention's output, and five widths of
      the MLP: GELU is spelt out.

    Autocast leaves norms in float32, and casts y once for each product. Frozen weights need no
    inputs: LoRA keeps x twice, y once, and not the last width of the MLP. In bfloat16 its two
    adapters cast y once more. With recomputation, each layer keeps its input, and one layer at a
    time everything.

    Args:
        shape: The language model.
        work: Sizes of the minibatch.
        choices: How the policy is trained.
    """
    tokens = work.minibatch * work.fed
    d, q, m = shape.width, shape.queries, shape.mlp
    k = shape.queries if work.is_padded else shape.keys
    is_gpt2, trains_all = shape.kind == "gpt2", not choices.rank
    casts = choices.is_bfloat16 and trains_all
    norms_in_float32 = 2 * d if is_gpt2 or not trains_all else 4 * d
    if shape.kind == "qwen3":
        norms_in_float32 += (2 if trains_all else 1) * (shape.queries + shape.keys)
    if is_gpt2:
        inputs = 2 * d if trains_all else d
        mlp = 5 * m if trains_all else 4 * m
    else:
        inputs = (
            (5 * d if casts else 2 * d) if trains_all else (2 * d if choices.is_bfloat16 else d)
        )
        mlp = 4 * m if trains_all else 3 * m
    attention = (2 * q + 2 * k) * choices.size
    if choices.is_bfloat16 and choices.is_on_cpu and work.fed <= 256:
        # Attention in float32 (textgym.models.kernels); its output is cast for the next matrix.
        attention = (2 * q + 2 * k) * 4 + (q * 2 if trains_all else 0)
    # GPT-2's norms are computed in the dtype of their input, which is bfloat16 with LoRA.
    norm_size = choices.size if is_gpt2 and choices.rank else 4
    of_layer = tokens * (norm_size * norms_in_float32 + choices.size * (inputs + mlp) + attention)
    if not choices.recomputes:
        return shape.layers * of_layer
    kept = choices.size if choices.rank else 4
    return shape.layers * tokens * d * kept + of_layer
