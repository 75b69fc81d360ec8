from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from textgym.agents import AGENTS, GRPO, PPO, RLOO, load_agent
from textgym.errors import InvalidArgumentError


def test_agents_have_names() -> None:
    assert AGENTS == {"ppo": PPO, "rloo": RLOO, "grpo": GRPO}


@pytest.mark.parametrize("name", AGENTS)
def test_a_checkpoint_is_loaded_as_the_agent_that_wrote_it(
    make_model, make_vector_env, tmp_path, name: str
) -> None:
    env = make_vector_env(4)
    agent = AGENTS[name](make_model(), env, episodes_per_iteration=8, log_dir=tmp_path).learn(1)
    agent.save(tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent", env, log_dir=tmp_path / "other")
    assert type(loaded) is type(agent)
    assert loaded.config == dataclasses.replace(agent.config, log_dir=str(tmp_path / "other"))
    assert loaded.history == agent.history
    observations, _ = env.reset(seed=[0, 1, 2, 3])
    np.testing.assert_array_equal(agent.predict(observations)[0], loaded.predict(observations)[0])


def test_a_checkpoint_of_another_agent_is_refused(make_model, make_vector_env, tmp_path) -> None:
    RLOO(make_model(), make_vector_env(4), log_dir=tmp_path).save(tmp_path / "agent")
    for other in (PPO, GRPO):
        with pytest.raises(InvalidArgumentError, match=rf"^path=.*{other.name}\.save wrote"):
            other.load(tmp_path / "agent")


def test_what_is_no_checkpoint_is_refused(tmp_path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(InvalidArgumentError, match=r"^path=.*checksums\.json is missing"):
        load_agent(tmp_path / "agent")
    with pytest.raises(InvalidArgumentError, match="is a file"):
        load_agent(tmp_path / "file")
    with pytest.raises(InvalidArgumentError, match="no such folder"):
        load_agent(tmp_path / "nothing")
