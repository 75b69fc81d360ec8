"""Samplers that ship: clients of engines that sample completions."""

from .client import ServerError
from .server import CompletionServer
from .weights import ReloadFromFolder

__all__ = ["CompletionServer", "ReloadFromFolder", "ServerError"]
