"""Stable-Baselines3 on text: a language model as its policy, credit in its buffers, batches.

Each part stands alone and leaves the algorithms of Stable-Baselines3 as they are. The policy for
the masks of ``sb3-contrib`` is in :mod:`textgym.agents.sb3.maskable`, since it needs that package.
"""

from .callback import HindsightCreditCallback
from .policy import LanguageModelPolicy
from .replay import HindsightDictReplayBuffer, HindsightReplayBuffer
from .vec_env import TextVecEnv

__all__ = [
    "HindsightCreditCallback",
    "HindsightDictReplayBuffer",
    "HindsightReplayBuffer",
    "LanguageModelPolicy",
    "TextVecEnv",
]
