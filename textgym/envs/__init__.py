"""Environments: text generation, one token per step, single and batched."""

from textgym.envs.arguments import TextGenerationArguments, VectorArguments
from textgym.envs.planted import PlantedEnv, PlantedVectorEnv
from textgym.envs.text_environment import LastStep, TextEnvironment
from textgym.envs.text_generation import TextGenerationEnv
from textgym.envs.text_generation_vector import TextGenerationVectorEnv

__all__ = [
    "LastStep",
    "PlantedEnv",
    "PlantedVectorEnv",
    "TextEnvironment",
    "TextGenerationArguments",
    "TextGenerationEnv",
    "TextGenerationVectorEnv",
    "VectorArguments",
]
