"""Training of reward models from pairs or labels: ``textgym train-reward``."""

from textgym.reward_training.data import Labelled, Pair, load_examples, split_examples
from textgym.reward_training.evaluation import evaluate
from textgym.reward_training.fitting import fit_reward_model
from textgym.reward_training.training import RewardRecipe, train_reward_model

__all__ = [
    "Labelled",
    "Pair",
    "RewardRecipe",
    "evaluate",
    "fit_reward_model",
    "load_examples",
    "split_examples",
    "train_reward_model",
]
