"""A causal language model as the policy of Stable-Baselines3's on-policy algorithms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from textgym.agents.distribution import ActionRules, masked_entropy
from textgym.agents.lora import add_lora, weights_kept
from textgym.agents.policy import LanguageModelPolicy as LanguageModelNetwork
from textgym.agents.policy import in_float32, parse_autocast
from textgym.checks import check_number, did_you_mean
from textgym.errors import InvalidArgumentError
from textgym.models import load_language_model

from .texts import left_padded, longest_texts

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

__all__ = ["LanguageModelPolicy", "LanguageModelPolicyMethods"]

_SETTINGS = ("model", "temperature", "lora", "dtype", "optimizer_class", "optimizer_kwargs")


class LanguageModelPolicyMethods:
    """A mixin that lets a language model do the work of an SB3 policy.

    The features extractor, ``mlp_extractor`` and ``action_net`` of the base class are not used. The
    language model reads the observation, and one forward pass gives the logits and the value.

    To SB3 every token is a sample of its own, with a text as its observation. But no text is read
    more often than needed. In a rollout, the model reads the tokens that are new since the last
    step. In an update, it reads the texts that are no beginning of another one in the minibatch,
    and finds the others in them.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model: str | Path | PreTrainedModel = "embedded",
        temperature: float = 1.0,
        lora: bool | LoraConfig | None = False,
        dtype: str | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict) or not (
            {"input_ids", "attention_mask"} <= set(observation_space.spaces)
        ):
            raise InvalidArgumentError(
                "env",
                observation_space,
                'a language model reads Dict observations with "input_ids" and "attention_mask": '
                "use a text environment without wrappers that change its observations",
            )
        if not isinstance(action_space, spaces.Discrete) or action_space.start != 0:
            raise InvalidArgumentError(
                "env",
                action_space,
                "the actions of a language model are token ids: use a text environment without "
                "wrappers that change its actions",
            )
        for name in keywords.keys() - {"use_sde"}:
            raise InvalidArgumentError(
                name,
                keywords[name],
                "the language model is the whole network, without such a setting in policy_kwargs; "
                + did_you_mean(name, _SETTINGS),
            )
        check_number("temperature", temperature, above=0, remedy="must be a finite number above 0")
        # Without weight decay: it would pull a pre-trained model towards zero.
        is_adamw = optimizer_class is torch.optim.AdamW
        default_kwargs = {"weight_decay": 0.0} if is_adamw else {}
        optimizer_kwargs = default_kwargs | (optimizer_kwargs or {})
        lora = False if lora is None else lora
        super().__init__(  # type: ignore[call-arg]
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            ortho_init=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **keywords,
        )
        # In a dict, because a loaded model as an attribute would become a submodule of the policy.
        self._language_model_arguments = {
            "model": model,
            "temperature": temperature,
            "lora": lora,
            "dtype": dtype,
        }
        language_model = copy.deepcopy(load_language_model(model))
        if lora is False:
            language_model = in_float32(language_model, "model", "pass lora=True")
            language_model.requires_grad_(True)
        else:
            with weights_kept(language_model):
                add_lora(language_model, lora)
        self._num_actions = int(action_space.n)
        self._knows_illegal_token = "illegal_token" in observation_space.spaces
        rules = ActionRules(self._num_actions)
        self.network = LanguageModelNetwork(
            language_model, rules, temperature, parse_autocast(dtype)
        )
        with self.network.reading():  # Refuses a model whose texts cannot be read so.
            pass
        trained = [one for one in self.network.parameters() if one.requires_grad]
        self.optimizer = optimizer_class(trained, lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]

    def _build(self, lr_schedule: Schedule) -> None:
        """Do nothing: the base constructor calls this before modules can be set."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        base: Any = self
        return {
            "observation_space": base.observation_space,
            "action_space": base.action_space,
            "lr_schedule": base._dummy_schedule,
            "optimizer_class": base.optimizer_class,
            "optimizer_kwargs": base.optimizer_kwargs,
            **self._language_model_arguments,
        }

    def reference(self) -> Self:
        """A frozen policy with the model that this one was made of, as it was before training.

        Temperature, dtype and legal tokens are the same. With adapters it has some as well, which
        are switched off, so that both policies round alike.
        """
        with torch.random.fork_rng(devices=[]):  # Adapters start at random numbers.
            reference: Any = type(self)(**self._get_constructor_parameters())
        if self._language_model_arguments["lora"] is not False:
            reference.network.model.disable_adapters()
        return reference.to(self.device).requires_grad_(False)  # type: ignore[attr-defined]

    def set_training_mode(self, mode: bool) -> None:
        """Stay in evaluation mode, in which the tokens are sampled.

        With dropout, the trained network would differ from the one that sampled, and PPO's
        probability ratio would not be 1 before the first update.
        """
        self.network.eval()

    def _read(
        self, obs: Any, action_masks: NDArray[Any] | Tensor | None = None, *, at_once: bool = False
    ) -> tuple[Any, Tensor]:
        """Distributions over the next token, and values, (batch, 1), of some texts.

        Without gradients, they continue those of the last call, unless they are read ``at_once``.
        """
        read = self._read_at_once if at_once or torch.is_grad_enabled() else self._read_on
        logits, values = read(obs["input_ids"].long(), obs["attention_mask"].bool())
        # Logits beyond the action space belong to padding rows of the embedding matrix.
        legal = logits[:, : self._num_actions] / self.network.temperature
        if self._knows_illegal_token:
            tokens = torch.arange(self._num_actions, device=legal.device)
            # (batch, num_actions); stored observations are float32, and -1 is no token.
            is_illegal = tokens == obs["illegal_token"].long().view(-1, 1)
            legal = legal.masked_fill(is_illegal, -torch.inf)
        distribution = self.action_dist.proba_distribution(action_logits=legal)  # type: ignore[attr-defined]
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution, values[:, None]

    def _read_on(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, vocab) and values (batch,), for which only new tokens are read."""
        rows = zip(ids.cpu(), mask.cpu(), strict=True)  # once, not row by row
        return self.network.read_on([row[kept].tolist() for row, kept in rows])

    def _read_at_once(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, vocab) and values (batch,), in a forward pass over the longest texts."""
        ids, mask = left_padded(ids, mask)
        longest, inside = longest_texts(ids, mask)
        lengths = mask.sum(dim=1)
        columns = ids.shape[1] - 1 - lengths[longest][inside] + lengths
        return self.network.outputs_at(ids[longest], mask[longest], inside, columns)

    def forward(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the next tokens.

        Args:
            obs: The batched observations; see the class.
            deterministic: Take the most probable tokens instead of sampling.
            action_masks: 1 at legal tokens, (batch, num_actions), for a base policy with masks.

        Returns:
            Tokens int64 (batch,), values (batch, 1) and log-probabilities (batch,).
        """
        distribution, values = self._read(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: PyTorchObs, actions: Tensor, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate given tokens, in one forward pass over the minibatch.

        Args:
            obs: The batched observations; see the class. The more of them are states of one
                episode, the fewer texts there are to read.
            actions: Token ids, int64 (batch,).
            action_masks: 1 at legal tokens, (batch, num_actions), for a base policy with masks.

        Returns:
            Values (batch, 1), log-probabilities (batch,) and entropies in nats (batch,).
        """
        distribution, values = self._read(obs, action_masks, at_once=True)
        # SB3's own entropy multiplies 0 by the lowest float: its gradient can overflow to NaN.
        entropy = masked_entropy(distribution.distribution.logits)
        return values, distribution.log_prob(actions), entropy

    def get_distribution(self, obs: PyTorchObs, action_masks: NDArray[Any] | None = None) -> Any:
        """The distributions over the next token."""
        return self._read(obs, action_masks)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """The values of some texts, (batch, 1)."""
        return self._read(obs)[1]


class LanguageModelPolicy(LanguageModelPolicyMethods, ActorCriticPolicy):
    """A causal language model with a value head, for SB3's own ``PPO`` and ``A2C``.

    The logits are the model's own, so training starts at the pre-trained model. The value head on
    the last hidden state starts at zero. The model is copied, never changed.

    Without further help the policy can choose every token at any time, EOS included: the tokens do
    not say where the prompt ends, so it cannot know whether ``min_new_tokens`` is reached. The
    environment accepts an early EOS: it ends the text, which is scored as it is. To make EOS wait,
    wrap the environment in ``textgym.wrappers.IllegalToken`` (or its vector form). Then samples,
    log-probabilities, entropies and predictions all come from the distribution over the legal
    tokens.

    The defaults of SB3's algorithms are made for networks that start at random. A pre-trained model
    needs a learning rate of 1e-5 to 1e-4 (ten times that with adapters), and ``gamma=1``.

    Args:
        observation_space: Dict with ``input_ids`` and ``attention_mask``, both (max_length,), and
            optionally ``illegal_token``, (1,), a token that must not be chosen now, or -1.
        action_space: Discrete, no larger than the model's vocabulary.
        lr_schedule: Learning rate as a function of the remaining progress, from SB3.
        model: See :func:`textgym.models.load_language_model`. A copy is trained, in float32; below
            adapters it keeps its dtype. An algorithm's ``save`` stores this argument beside the
            trained weights. A name is smaller than a loaded model, which cannot be stored at all
            once a wrapper has read text with it (Transformers adds hooks then).
        temperature: Divides the logits, in sampling and in training.
        lora: Freeze the model and train low-rank adapters (and the value head): True, or a
            ``peft.LoraConfig``; needs the extra ``textgym[lora]``. None or False for none.
        dtype: Autocast dtype of the model: "bfloat16", or None for float32. Weights stay float32.
        optimizer_class: The optimizer; AdamW by default.
        optimizer_kwargs: Its keyword arguments except the learning rate. AdamW has no weight decay
            unless they say so.
        **keywords: ``use_sde``, which SB3 passes and which has no effect on Discrete actions.

    Raises:
        InvalidArgumentError: If the spaces, the model, the temperature, the adapters or the dtype
            do not fit, the model cannot be read token by token, or there is no such setting.
        MissingDependencyError: If adapters are requested and ``peft`` is not installed.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from stable_baselines3 import PPO
        >>> from textgym.wrappers import IllegalToken
        >>> env = IllegalToken(gym.make("ABC-RLHF-v0"))
        >>> agent = PPO(LanguageModelPolicy, env, policy_kwargs={"model": "embedded"}, seed=0)
        >>> observation, info = env.reset(seed=0)
        >>> token, _ = agent.predict(observation)
        >>> token in env.action_space
        True
    """
