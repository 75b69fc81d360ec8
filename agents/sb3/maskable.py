"""Policy and buffer for action masks; needs the optional package ``sb3-contrib``."""

from __future__ import annotations

from textgym.errors import MissingDependencyError

from .policy import LanguageModelPolicyMethods
from .whole_texts import WholeTexts

try:
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ImportError:
    raise MissingDependencyError("sb3-contrib", "sb3", "masking actions") from None

__all__ = ["MaskableLanguageModelPolicy", "MaskableWholeTextDictRolloutBuffer"]


class MaskableLanguageModelPolicy(LanguageModelPolicyMethods, MaskableActorCriticPolicy):
    """:class:`textgym.agents.sb3.LanguageModelPolicy` for ``sb3_contrib.MaskablePPO``.

    Tokens are sampled, and their log-probabilities taken, from the same distribution: the one over
    the tokens that the environment's ``action_masks()`` allows. So EOS waits until
    ``min_new_tokens``. The arguments are those of
    :class:`textgym.agents.sb3.LanguageModelPolicy`.

    Raises:
        InvalidArgumentError: See :class:`textgym.agents.sb3.LanguageModelPolicy`.
        MissingDependencyError: If adapters are requested and ``peft`` is not installed. On import,
            if ``sb3-contrib`` is not installed.
    """


class MaskableWholeTextDictRolloutBuffer(WholeTexts, MaskableDictRolloutBuffer):
    """:class:`textgym.agents.sb3.WholeTextDictRolloutBuffer` for ``sb3_contrib.MaskablePPO``."""
