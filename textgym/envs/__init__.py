"""Environments: text generation, one token per step, single and batched."""

from textgym.envs.planted import PlantedEnv, PlantedVectorEnv
from textgym.envs.text_generation import TextGenerationEnv
from textgym.envs.text_generation_vector import TextGenerationVectorEnv

__all__ = ["PlantedEnv", "PlantedVectorEnv", "TextGenerationEnv", "TextGenerationVectorEnv"]
