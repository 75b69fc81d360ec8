"""What each of two processes does for test_processes.py, which launches this with torchrun.

torchrun --nproc-per-node 2 launched.py FOLDER

Every process writes what it saw into FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from token_env import TokenEnv, TokenVectorEnv, make_tiny_model

from textgym.agents import AGENTS, Agent, Critic, Processes, groups, ppo
from textgym.agents.sharding import full_state

MANY = 10**9
AGENT_KWARGS: dict[str, dict[str, Any]] = {
    # An eps this large makes Adam's steps smooth in the gradient, so that rounding stays small.
    "ppo": {"kl_penalty": "exact", "ent_coef": 0.1, "vf_coef": 0.5},
    "rloo": {"advantages": "token", "ent_coef": 0.1, "group_size": 2},
    "grpo": {"ent_coef": 0.1, "group_size": 2, "credit_weights": 0.5},
}
COMMON = {"episodes_per_iteration": 8, "minibatch_size": 4, "num_epochs": 2, "adam_eps": 1e-2}


def make_agent(name: str, log_dir: Path, num_envs: int, **changes: Any) -> Agent:
    kwargs = COMMON | AGENT_KWARGS[name] | {"learning_rate": 0.05, "log_dir": str(log_dir)}
    return AGENTS[name](make_tiny_model(), TokenVectorEnv(num_envs), **kwargs | changes)


class OwnNetwork(Critic):
    """A critic that looks at the newest prompt token alone, with weights that start at random."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def set_up(self, agent: Agent) -> None:
        super().set_up(agent)
        torch.manual_seed(self.seed)
        self.network = torch.nn.Embedding(TokenEnv.VOCAB, 1)

    def learned(self, texts: Any, evaluation: Any) -> torch.Tensor:
        newest = texts[0][:, -texts[2].shape[1] - 1]  # (batch,)
        return self.network(newest).masked_fill(~texts[2], 0.0)


def train(agent: Agent, num_iterations: int) -> Agent:
    stop = len(agent.history) + num_iterations
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < stop)


def recorded_rollouts() -> list[Any]:
    rollouts: list[Any] = []
    collect = ppo.collect_episodes

    def recording(*args: Any, **kwargs: Any) -> Any:
        rollouts.append(collect(*args, **kwargs))
        return rollouts[-1]

    ppo.collect_episodes = groups.collect_episodes = recording
    return rollouts


def weights(agent: Agent) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}


def main(folder: Path) -> None:
    processes = Processes.current("cpu")
    rank = processes.rank
    seen: dict[str, Any] = {"size": processes.size}

    rollouts = recorded_rollouts()
    for name in AGENT_KWARGS:
        agent = train(make_agent(name, folder / name, num_envs=4), 1)
        seen[name] = {
            "rollout": vars(rollouts[-1]),
            "weights": weights(agent),
            "row": agent.history[0],
        }

    # Four iterations in a row, and two, then two from the checkpoint.
    adaptive = {"kl_target": 0.5, "kl_controller": "pi"}
    unbroken = make_agent("ppo", folder / "unbroken", num_envs=2, **adaptive)
    seen["callbacks"] = []
    unbroken.learn(MANY, callback=lambda row: stop_in_one_process(row, rank, seen["callbacks"]))
    broken = train(make_agent("ppo", folder / "broken", num_envs=2, **adaptive), 2)
    broken.save(folder / f"broken-{rank}")
    processes.any(True)  # The file is there when all have come so far.
    resumed = train(type(broken).load(folder / "broken-0", TokenVectorEnv(2)), 2)
    for name, agent in {"unbroken": unbroken, "resumed": resumed}.items():
        history = [{k: v for k, v in r.items() if k != "time/seconds"} for r in agent.history]
        seen[name] = {"weights": weights(agent), "history": history}
        seen[name]["kl_coef"] = agent.kl_controller.coef
    seen["prompts"] = rollouts[-1].input_ids[:, : -rollouts[-1].completion_mask.shape[1]]

    # The same training with weights in parts: saved, and resumed in parts.
    for shard in (False, True):
        agent = make_agent("ppo", folder / f"shard-{shard}", num_envs=4, shard=shard)
        train(agent, 1).save(folder / f"saved-{shard}")
        processes.any(True)
        agent = train(type(agent).load(folder / f"saved-{shard}", TokenVectorEnv(4)), 1)
        parameters = list(agent.policy.parameters())
        seen[f"shard {shard}"] = {
            "weights": full_state(agent.policy),
            "grad_norm": agent.history[-1]["train/grad_norm"],
            "numbers": sum(p.to_local().numel() if shard else p.numel() for p in parameters),
        }
        agent.save_pretrained(folder / f"exported-{shard}")

    # A critic whose own weights start at random in each process.
    agent = make_agent("ppo", folder / "critic", num_envs=4, critic=OwnNetwork(rank))
    seen["critic"] = train(agent, 1).critic.network.weight.detach().clone()

    # Weights of the main process; gradients that only one process has; unequal numbers of tokens.
    torch.manual_seed(rank)
    layer = torch.nn.Linear(3, 2)
    processes.synchronize(layer)
    seen["layer"] = layer.weight.detach().clone()
    unused = torch.nn.Parameter(torch.ones(2))
    if rank == 1:
        layer.bias.grad = torch.tensor([2.0, 6.0])
    layer.weight.grad = torch.full((2, 3), float(rank))
    processes.average_gradients([layer.weight, layer.bias, unused])
    seen["gradients"] = [layer.weight.grad, layer.bias.grad, unused.grad]
    x = torch.arange(5.0) if rank == 0 else torch.tensor([10.0])
    share = processes.token_share(torch.ones_like(x))
    seen["mean"] = processes.mean(share * x.mean())
    seen["all"] = processes.concatenate(x)

    torch.save(seen, folder / f"{rank}.pt")


def stop_in_one_process(row: dict[str, float], rank: int, calls: list[float]) -> bool:
    calls.append(row["time/iteration"])
    return not (rank == 1 and row["time/iteration"] == 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
