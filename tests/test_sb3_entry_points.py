"""Stable-Baselines3's documentation, on textgym's ids: what it shows has to run unedited.

Each test follows a page of https://stable-baselines3.readthedocs.io, at a tiny size.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.results_plotter import load_results
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)
from stable_baselines3.ppo.policies import MlpPolicy

import textgym

FEATURES = "ABC-RLHF-Features-v0"
IDS = list(textgym.registration.ENVIRONMENTS)
SHORT = {"max_new_tokens": 4}
PPO_SIZES = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}


def play(model, vec_env, num_steps=5):
    """The loop that closes most of the examples; the frames that it shows."""
    frames = []
    obs = vec_env.reset()
    for _ in range(num_steps):
        action, _states = model.predict(obs)
        obs, _rewards, _dones, _infos = vec_env.step(action)
        frames.append(vec_env.render("rgb_array"))
    return frames


@pytest.mark.parametrize("env_id", IDS)
def test_the_environment_checker(env_id, recwarn):
    check_env(gym.make(env_id, max_new_tokens=8, min_new_tokens=8).unwrapped, warn=True)
    assert not recwarn


@pytest.mark.parametrize(
    ("algorithm", "sizes"),
    [
        (PPO, PPO_SIZES),
        (A2C, {"n_steps": 4}),
        (DQN, {"learning_starts": 4, "buffer_size": 50, "batch_size": 4}),
    ],
)
def test_an_id_as_the_environment(algorithm, sizes):
    model = algorithm("MlpPolicy", FEATURES, **sizes).learn(16)
    frames = play(model, model.get_env())
    assert frames[0].dtype == np.uint8
    assert frames[0].ndim == 3
    assert any(not np.array_equal(frames[0], frame) for frame in frames[1:])


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_env(env_id):
    vec_env = make_vec_env(env_id, n_envs=2, seed=0)
    assert isinstance(vec_env, DummyVecEnv)
    assert vec_env.render_mode == "rgb_array"
    policy = "MlpPolicy" if "Features" in env_id else "MultiInputPolicy"
    frames = play(PPO(policy, vec_env, **PPO_SIZES), vec_env, num_steps=2)
    single = vec_env.envs[0].render()
    assert frames[0].size == 2 * single.size  # two rows, tiled to one picture


def test_two_seeded_batches_agree():
    observations = []
    for _ in range(2):
        vec_env = make_vec_env(FEATURES, n_envs=2, seed=3, env_kwargs=SHORT)
        observations.append(vec_env.reset())
    assert np.array_equal(*observations)
    assert not np.array_equal(observations[0][0], observations[0][1])


def test_processes():
    # The module in the id is imported in each process, which registers the id there.
    vec_env = make_vec_env(
        f"textgym:{FEATURES}",
        n_envs=1,
        seed=0,
        env_kwargs=SHORT,
        vec_env_cls=SubprocVecEnv,
    )
    here = make_vec_env(FEATURES, n_envs=1, seed=0, env_kwargs=SHORT)
    try:
        model = PPO("MlpPolicy", vec_env, **PPO_SIZES).learn(16)
        vec_env.seed(0)
        np.testing.assert_allclose(vec_env.reset(), here.reset(), atol=1e-5)
        assert len(play(model, vec_env, num_steps=1)) == 1
    finally:
        vec_env.close()


def test_processes_of_a_script_that_imports_textgym(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import gymnasium as gym
            from stable_baselines3.common.utils import set_random_seed
            from stable_baselines3.common.vec_env import SubprocVecEnv

            import textgym

            def make_env(env_id, rank, seed=0):
                def _init():
                    env = gym.make(env_id, render_mode="rgb_array")
                    env.reset(seed=seed + rank)
                    return env
                set_random_seed(seed)
                return _init

            if __name__ == "__main__":
                makers = [make_env("{FEATURES}", i) for i in range(1)]
                vec_env = SubprocVecEnv(makers, start_method="spawn")
                print(vec_env.reset().shape)
                vec_env.close()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "(1, 1285)\n", done.stderr


def test_dict_observations():
    model = PPO("MultiInputPolicy", "ABC-RLHF-v0", **PPO_SIZES).learn(16)
    assert model.num_timesteps == 16


def test_saving_and_loading(tmp_path):
    env = gym.make(FEATURES, render_mode="rgb_array", **SHORT)
    model = DQN("MlpPolicy", env, learning_starts=4, buffer_size=50, batch_size=4).learn(8)
    model.save(tmp_path / "dqn")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DQN.load(tmp_path / "dqn", env=env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 8
    observation = model.get_env().reset()
    assert (
        model.predict(observation, deterministic=True)[0]
        == (loaded.predict(observation, deterministic=True)[0])
    )
    without = DQN.load(tmp_path / "dqn")
    without.set_env(make_vec_env(FEATURES, n_envs=1, env_kwargs=SHORT))
    without.learn(4, reset_num_timesteps=False)
    assert without.num_timesteps == 12


def test_a_policy_by_itself(tmp_path):
    vec_env = make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT)
    model = PPO("MlpPolicy", vec_env, **PPO_SIZES)
    model.policy.save(tmp_path / "policy")
    policy = MlpPolicy.load(tmp_path / "policy")
    of_model = evaluate_policy(model, _seeded(vec_env), n_eval_episodes=4, deterministic=True)
    of_policy = evaluate_policy(policy, _seeded(vec_env), n_eval_episodes=4, deterministic=True)
    assert of_model == of_policy


def _seeded(vec_env):
    vec_env.seed(1)
    return vec_env


def test_parameters_can_be_read_and_set():
    model = A2C("MlpPolicy", FEATURES, n_steps=4, policy_kwargs={"net_arch": [8]}).learn(4)
    noisy = {
        key: value + torch.randn_like(value) for key, value in model.policy.state_dict().items()
    }
    model.policy.load_state_dict(noisy, strict=False)
    mean, deviation = evaluate_policy(model, model.get_env(), n_eval_episodes=2)
    assert np.isfinite([mean, deviation]).all()


def test_evaluation_reports_the_scores():
    env = Monitor(gym.make(FEATURES, **SHORT))
    model = PPO("MlpPolicy", env, **PPO_SIZES)
    scores = []

    def keep_score(local_variables, _):
        if local_variables["done"]:
            scores.append(local_variables["info"]["score"])

    returns, lengths = evaluate_policy(
        model, env, n_eval_episodes=3, callback=keep_score, return_episode_rewards=True
    )
    assert returns == pytest.approx(scores, abs=1e-5)
    assert lengths == [4, 4, 4]


def test_the_monitor_writes_every_episode(tmp_path):
    vec_env = make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT, monitor_dir=str(tmp_path))
    PPO("MlpPolicy", vec_env, **PPO_SIZES).learn(16)
    results = load_results(str(tmp_path))
    assert results["l"].tolist() == [4] * 4


def test_callbacks(tmp_path):
    vec_env = make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT)
    stop = StopTrainingOnRewardThreshold(reward_threshold=-100.0, verbose=0)
    evaluation = EvalCallback(
        make_vec_env(FEATURES, n_envs=1, env_kwargs=SHORT),
        callback_on_new_best=stop,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "logs"),
        n_eval_episodes=2,
        eval_freq=8,
        verbose=0,
    )
    checkpoints = CheckpointCallback(save_freq=4, save_path=str(tmp_path / "checkpoints"))
    model = PPO("MlpPolicy", vec_env, **PPO_SIZES, tensorboard_log=str(tmp_path / "tensorboard"))
    model.learn(1_000, callback=[checkpoints, evaluation], progress_bar=False)
    assert model.num_timesteps == 16  # the threshold is reached at the first evaluation
    assert PPO.load(tmp_path / "best" / "best_model").observation_space.shape == (1285,)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert np.load(tmp_path / "logs" / "evaluations.npz")["results"].shape == (1, 2)
    assert any((tmp_path / "tensorboard").rglob("events*"))


def test_normalised_observations_and_rewards(tmp_path):
    vec_env = VecNormalize(make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT), clip_obs=10.0)
    model = PPO("MlpPolicy", vec_env, **PPO_SIZES).learn(16)
    model.save(tmp_path / "ppo")
    vec_env.save(tmp_path / "statistics.pkl")
    fresh = make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT)
    loaded_env = VecNormalize.load(tmp_path / "statistics.pkl", fresh)
    loaded_env.training = loaded_env.norm_reward = False
    assert np.array_equal(loaded_env.obs_rms.mean, vec_env.obs_rms.mean)
    loaded = PPO.load(tmp_path / "ppo", env=loaded_env)
    assert len(play(loaded, loaded_env)) == 5


def test_wrappers_of_batches():
    stacked = VecFrameStack(make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT), n_stack=3)
    assert stacked.reset().shape == (2, 3 * 1285)
    assert PPO("MlpPolicy", stacked, **PPO_SIZES).learn(16).num_timesteps == 16

    text = VecMonitor(DummyVecEnv([lambda: gym.make("ABC-RLHF-v0")]))
    ids_only = VecCheckNan(VecExtractDictObs(text, "input_ids"))
    assert PPO("MlpPolicy", ids_only, **PPO_SIZES).learn(16).num_timesteps == 16


def test_attributes_of_a_batch():
    vec_env = make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT)
    assert vec_env.get_attr("render_mode") == ["rgb_array"] * 2
    assert vec_env.env_is_wrapped(Monitor) == [True] * 2
    assert vec_env.env_method("get_wrapper_attr", "max_new_tokens") == [4, 4]


def test_videos_of_a_batch(tmp_path):
    vec_env = VecVideoRecorder(
        make_vec_env(FEATURES, n_envs=2, env_kwargs=SHORT),
        str(tmp_path),
        record_video_trigger=lambda step: step == 0,
        video_length=6,
        name_prefix="random",
    )
    vec_env.reset()
    for _ in range(7):
        vec_env.step([vec_env.action_space.sample() for _ in range(2)])
    vec_env.close()
    assert num_frames(tmp_path / "random-step-0-to-step-6.mp4") == 7


def test_the_loop_of_cleanrl_with_capture_video(tmp_path):
    """`make_env` as in https://github.com/vwxyzjn/cleanrl/blob/master/cleanrl/ppo.py."""

    def make_env(env_id, idx, capture_video, run_name):
        def thunk():
            if capture_video and idx == 0:
                env = gym.make(env_id, render_mode="rgb_array")
                env = RecordVideo(env, f"{tmp_path}/{run_name}")
            else:
                env = gym.make(env_id)
            return RecordEpisodeStatistics(env)

        return thunk

    envs = gym.vector.SyncVectorEnv([make_env(FEATURES, i, True, "run") for i in range(2)])
    envs.reset(seed=1)
    returns = []
    for _ in range(18):
        _, _, _, _, infos = envs.step(np.zeros(2, dtype=np.int64))
        if "episode" in infos:
            returns.append(infos["episode"]["r"])
            np.testing.assert_allclose(returns[-1], infos["score"], atol=1e-5)
    envs.close()
    assert len(returns) == 1
    # One frame at the reset, one after each of 16 tokens; the last one shows the score.
    assert num_frames(tmp_path / "run" / "rl-video-episode-0.mp4") == 17


def num_frames(path):
    from moviepy import VideoFileClip

    with VideoFileClip(str(path)) as clip:
        return round(clip.duration * clip.fps)
