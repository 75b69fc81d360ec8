"""textgym: text generation as a Gymnasium environment, one token per step.

``import textgym`` registers the environments with Gymnasium and nothing more: models are loaded
when an environment is made.
"""

from importlib.metadata import version as _version

from textgym.registration import register_environments

__all__ = ["__version__", "register_environments"]

__version__ = _version("textgym")

register_environments()
