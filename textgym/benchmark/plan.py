"""What a benchmark compares: tasks, methods, and suites of both. Plain data, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from textgym.checks import check_number, check_whole_number
from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


__all__ = ["EPISODES", "TASKS", "Method", "Suite", "Task"]

EPISODES = 16
"""Episodes per iteration, all in one batch."""
_AGENTS = ("ppo", "rloo", "grpo")
"""The bundled agents; :data:`textgym.agents.AGENTS` has them with torch."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned.

    Attributes:
        env_id: Id of the environment.
        env_kwargs: Its keyword arguments.
        policy: The language model that is trained.
        iterations: Length of a run, of :data:`EPISODES` episodes each.
        kl_budget: In nats per completion. The area under the score curve counts iterations above
            it less.
        film_reviews: Whether the texts are film reviews, so that the gold reward model and the
            outside scorer can judge them.
    """

    env_id: str = "ABC-RLHF-v0"
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "embedded"
    iterations: int
    kl_budget: float
    film_reviews: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidArgumentError: If the length or the budget is not positive.
        """
        check_whole_number("iterations", self.iterations, 1)
        check_number("kl_budget", self.kl_budget, above=0, remedy="must be a number above 0")


def _reviews(shortest: int, longest: int, iterations: int, kl_budget: float) -> Task:
    length = {"min_new_tokens": shortest, "max_new_tokens": longest}
    return Task(env_kwargs=length, iterations=iterations, kl_budget=kl_budget)


TASKS = {
    "8-16": _reviews(8, 16, 150, 25.0),
    "20-30": _reviews(20, 30, 80, 30.0),
    "40-60": _reviews(40, 60, 60, 40.0),
    "90-110": _reviews(90, 110, 50, 55.0),
    "140-160": _reviews(140, 160, 50, 70.0),
    "planted": Task(
        env_id="ABC-RLHF-Planted-v0",
        policy="planted",
        iterations=100,
        kl_budget=25.0,
        film_reviews=False,
    ),
}
"""Film reviews by the number of tokens of a completion, and the task with a known answer."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Who learns, and from what.

    Attributes:
        agent: Name of a bundled agent, or a function ``(task, envs, settings) -> agent`` that
            makes one with the interface of :class:`textgym.agents.Agent`. ``settings`` has
            ``seed``, ``log_dir``, ``dtype`` and the hyperparameters.
        credit: A credit assigner by name, or your own as ``module:name``.
        credit_kwargs: Its keyword arguments.
        hyperparameters: Of the agent.
        by_task: Hyperparameters that differ on single tasks, by the task's name.
        num_envs: Rows of the environment. The bundled agents finish every episode that they begin,
            and have a row for each. Where a rollout has a fixed number of steps and cuts episodes,
            fewer rows cut fewer.
        color: In figures; None for any.
        family: What this method is a variant of, with another weight of the KL penalty. The
            variants of a family are a line in the figure of score against KL.
    """

    agent: str | Callable[[Task, VectorEnv, dict[str, Any]], Any] = "ppo"
    credit: str = "sparse"
    credit_kwargs: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    num_envs: int = EPISODES
    color: str | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without torch.

        Raises:
            InvalidArgumentError: If the agent is neither a bundled one nor a function, a task is
                unknown, or there are fewer than one rows.
        """
        if self.agent not in _AGENTS and not callable(self.agent):
            remedy = f"must be one of {', '.join(_AGENTS)}, or a function that makes an agent"
            raise InvalidArgumentError("agent", self.agent, remedy)
        for task in self.by_task:
            _check_task("by_task", task)
        check_whole_number("num_envs", self.num_envs, 1)

    @property
    def agent_name(self) -> str:
        """What tables call the agent: its name, or that of the function that makes it.

        It is the same in every process: addresses in memory are left out.
        """
        if isinstance(self.agent, partial):
            named = (f"{name}={value!r}" for name, value in self.agent.keywords.items())
            arguments = ", ".join((*map(repr, self.agent.args), *named))
            return re.sub(r" at 0x\w+", "", f"{_name_of(self.agent.func)}({arguments})")
        return self.agent if isinstance(self.agent, str) else _name_of(self.agent)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A question, and the runs that answer it: all methods on all tasks under all seeds.

    Attributes:
        question: In a sentence.
        tasks: Names of tasks.
        methods: Names of methods.
        baseline: The method that the others are compared with.
        seeds: Number of seeds, from 0 up.
        iterations: Length of every run; None: the task's.
    """

    question: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    baseline: str
    seeds: int = 10
    iterations: int | None = None

    def __post_init__(self) -> None:
        """Check names and numbers; whether methods are known, their suite's runs will tell.

        Raises:
            InvalidArgumentError: If there is no task, or an unknown one, the baseline is none of
                the methods, or a number is not positive.
        """
        if not self.tasks:
            raise InvalidArgumentError("tasks", self.tasks, "must name at least one task")
        for task in self.tasks:
            _check_task("tasks", task)
        check_whole_number("seeds", self.seeds, 1)
        if self.iterations is not None:
            check_whole_number("iterations", self.iterations, 1)
        if self.baseline not in self.methods:
            raise InvalidArgumentError("baseline", self.baseline, "must be one of the methods")

    def joined_by(self, methods: Iterable[str]) -> Suite:
        """The same suite, with these methods behind its own."""
        return replace(self, methods=tuple(dict.fromkeys((*self.methods, *methods))))


def _check_task(argument: str, name: str) -> None:
    if name not in TASKS:
        raise InvalidArgumentError(argument, name, f"must be one of {', '.join(TASKS)}")


def _name_of(function: Callable[..., Any]) -> str:
    """The name of a function, or that of the class of an object that is called like one."""
    return getattr(function, "__qualname__", type(function).__qualname__)
