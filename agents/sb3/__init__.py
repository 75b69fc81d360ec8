"""Stable-Baselines3 on text: language models as policies, KL penalty, credit in buffers, batches.

Each part can be used alone, and none changes the algorithms of Stable-Baselines3. What
action masks need is in :mod:`textgym.agents.sb3.maskable`, because it needs ``sb3-contrib``.
"""

from .callback import HindsightCreditCallback
from .kl_penalty import KLPenaltyCallback
from .policy import LanguageModelPolicy
from .replay import HindsightDictReplayBuffer, HindsightReplayBuffer
from .vec_env import TextVecEnv
from .whole_texts import WholeTextDictRolloutBuffer

__all__ = [
    "HindsightCreditCallback",
    "HindsightDictReplayBuffer",
    "HindsightReplayBuffer",
    "KLPenaltyCallback",
    "LanguageModelPolicy",
    "TextVecEnv",
    "WholeTextDictRolloutBuffer",
]
