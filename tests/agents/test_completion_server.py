"""The client of completion servers, against a real HTTP server that samples with a real model."""

from __future__ import annotations

import copy
import math
import socket
import threading
import warnings

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import AutoModelForCausalLM

import textgym  # noqa: F401  registers the environments
from tests.completion_server import CompletionServer
from textgym.agents import GRPO, PPO, RLOO, ActionRules, SamplingRequest, collect_episodes
from textgym.agents.environment import action_rules
from textgym.agents.mismatch import mismatch
from textgym.agents.policy import LanguageModelPolicy
from textgym.agents.samplers import CompletionServer as Client
from textgym.agents.samplers import ReloadFromFolder, ServerError
from textgym.errors import InvalidArgumentError
from textgym.models.loading import load_language_model

RULES = ActionRules(num_actions=20, eos_token_id=2, min_new_tokens=2)
REQUEST = SamplingRequest([7, 8], token_budget=4, seed=11)
AGENTS = pytest.mark.parametrize("agent_class", [PPO, RLOO, GRPO])


@pytest.fixture
def server(make_model):
    with CompletionServer(make_model()) as running:
        yield running


@pytest.fixture
def client(server):
    return Client(server.url, "tiny", sync=server.load)


@pytest.fixture
def make_agent(make_model, make_vector_env, tmp_path):
    def make(agent_class, sampler, **hyperparameters):
        defaults = {"episodes_per_iteration": 8, "minibatch_size": 4, "num_epochs": 1}
        return agent_class(
            make_model(), make_vector_env(8), sampler=sampler, log_dir=tmp_path,
            **{**defaults, **hyperparameters},
        )  # fmt: skip

    return make


def no_sync(model) -> None:
    """Leave the server's weights as they are."""


def perturb(model, size: float):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


# --- Agreement


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_with_the_same_weights_the_log_probabilities_are_the_policys(
    server, client, make_model, make_vector_env, temperature
) -> None:
    perturb(server.model, 0.5)  # They come from the policy: client.update loads them.
    env = make_vector_env(8)
    policy = LanguageModelPolicy(make_model(), action_rules(env), temperature)
    generator = torch.Generator().manual_seed(0)
    rollout = collect_episodes(policy, env, 16, generator, sampler=client)
    with torch.no_grad():
        logprobs = policy.evaluate(*rollout.texts).logprobs
    torch.testing.assert_close(rollout.logprobs, logprobs, atol=1e-5, rtol=1e-5)
    assert (rollout.completion_mask.sum(1) < rollout.token_budgets).any()  # some end with EOS
    measured = mismatch(logprobs, rollout.logprobs, rollout.completion_mask)
    assert abs(measured["rollout/sampler_kl"]) < 1e-7


def test_the_embedded_policy_agrees_with_a_server_of_its_own(tmp_path) -> None:
    model = load_language_model("embedded")
    envs = gym.make_vec(
        "ABC-RLHF-v0", num_envs=4, max_new_tokens=8, autoreset_mode=AutoresetMode.DISABLED
    )
    with CompletionServer(copy.deepcopy(model).float()) as server:
        agent = GRPO(
            "embedded", envs, sampler=Client(server.url, "embedded", sync=server.load),
            episodes_per_iteration=4, log_dir=tmp_path, temperature=0.9,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            row = agent.learn(1).history[0]
    assert row["rollout/sampler_gap"] < 1e-4
    assert row["rollout/importance_weight"] == pytest.approx(1, abs=1e-4)
    assert row["rollout/sampler_alarm"] == row["rollout/importance_capped"] == 0


@AGENTS
def test_agents_train_through_the_server(server, client, make_agent, agent_class) -> None:
    agent = make_agent(agent_class, client)
    before = copy.deepcopy(agent.policy.model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        agent.learn(1_000, callback=lambda row: len(agent.history) < 2)
    trained = agent.policy.model.state_dict()
    assert any(not torch.equal(before[name], trained[name]) for name in before)
    for row in agent.history:  # The second iteration needs the weights of the first.
        assert row["rollout/importance_weight"] == pytest.approx(1, abs=1e-4)
        assert math.isfinite(row["train/policy_loss"])


@AGENTS
def test_the_sampler_makes_no_difference_but_the_tokens(
    server, client, make_agent, recorded, agent_class
) -> None:
    """An update from the server's rollout is the update from the same rollout of the policy."""
    import textgym.agents.groups as groups
    import textgym.agents.ppo as ppo

    module = ppo if agent_class is PPO else groups
    rollouts = recorded(module, "collect_episodes")
    through_server = make_agent(agent_class, client).learn(1)
    agent = make_agent(agent_class, "policy")
    rollout = rollouts[0].result
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "collect_episodes", lambda *args, **kwargs: rollout)
        agent.learn(1)
    for name, weight in agent.policy.state_dict().items():
        torch.testing.assert_close(
            through_server.policy.state_dict()[name], weight, atol=1e-5, rtol=1e-4
        )


# --- Disagreement


def test_stale_weights_are_noticed_once_and_weights_are_truncated(
    server, make_agent, make_model
) -> None:
    perturb(server.model, 0.5)
    agent = make_agent(PPO, Client(server.url, "tiny", sync=no_sync), importance_cap=1.5)
    with pytest.warns(RuntimeWarning, match="the sampler is not the policy") as record:
        agent.learn(1_000, callback=lambda row: len(agent.history) < 2)
    (warning,) = [w for w in record if "not the policy" in str(w.message)]
    assert warning.filename == __file__  # It points at the call of learn.
    for row in agent.history:
        assert row["rollout/sampler_alarm"] == 1
        assert 0 < row["rollout/importance_capped"] < 1
        assert 0.1 < row["rollout/importance_weight"] < 1.5


def raise_temperature(server) -> None:
    server.temperature = 2.0


def answer_raw_logprobs(server) -> None:
    server.raw_logprobs = True


def cut_to_top_k(server) -> None:
    server.top_k = 2


@pytest.mark.parametrize("spoil", [raise_temperature, answer_raw_logprobs, cut_to_top_k])
@AGENTS
def test_another_distribution_is_noticed(server, client, make_agent, spoil, agent_class) -> None:
    spoil(server)
    agent = make_agent(agent_class, client, temperature=0.6)
    with pytest.warns(RuntimeWarning, match="the sampler is not the policy"):
        agent.learn(1)


def test_without_a_cap_the_advantages_stay_and_the_figures_too(server, make_agent) -> None:
    perturb(server.model, 0.5)
    agent = make_agent(RLOO, Client(server.url, "tiny", sync=no_sync), importance_cap=None)
    with pytest.warns(RuntimeWarning, match="not the policy"):
        row = agent.learn(1).history[0]
    assert row["rollout/sampler_kl"] > 0
    assert "rollout/importance_weight" not in row


# --- What is sent


def test_what_the_server_is_told(server, client, make_model) -> None:
    client.update(make_model())
    client.sample([REQUEST], RULES, temperature=0.5)
    assert server.payloads == [
        {
            "model": "tiny", "prompt": [7, 8], "n": 1, "seed": 11, "temperature": 0.5, "top_p": 1.0,
            "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "max_tokens": 4, "min_tokens": 2, "ignore_eos": True,
            "stop_token_ids": [2], "logprobs": 1, "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
    ]  # fmt: skip


def test_rows_of_the_vocabulary_that_are_no_actions_are_not_sampled(
    server, make_model, make_vector_env
) -> None:
    def padded():
        model = make_model()
        model.resize_token_embeddings(24)
        with torch.no_grad():
            model.lm_head.weight[20:] = 3 * model.lm_head.weight[:4]  # tempting ones
        return model

    env, server.model = make_vector_env(8), padded().eval()
    policy = LanguageModelPolicy(padded(), action_rules(env))
    client = Client(server.url, "tiny", sync=server.load)
    rollout = collect_episodes(policy, env, 8, torch.Generator().manual_seed(0), sampler=client)
    assert sorted(server.payloads[0]["logit_bias"]) == ["20", "21", "22", "23"]
    with torch.no_grad():
        logprobs = policy.evaluate(*rollout.texts).logprobs
    torch.testing.assert_close(rollout.logprobs, logprobs, atol=1e-5, rtol=1e-5)


def test_equal_seeds_give_equal_completions(client) -> None:
    requests = [REQUEST, SamplingRequest([7, 8], 4, seed=12), REQUEST]
    first, second, third = client.sample(requests, RULES, 1.0)
    assert first == third
    assert first != second


def test_requests_are_sent_at_the_same_time_and_keep_their_order(server) -> None:
    client = Client(server.url, "tiny", sync=server.load, num_threads=3)
    server.gate.clear()
    opener = threading.Timer(0.3, server.gate.set)
    opener.start()
    requests = [SamplingRequest([5 + i], 4, seed=i) for i in range(9)]
    completions = client.sample(requests, RULES, 1.0)
    assert server.most_at_once == 3
    assert completions == [client.sample([request], RULES, 1.0)[0] for request in requests]


def test_weights_travel_through_a_folder(make_model, make_vector_env, tmp_path) -> None:
    model = perturb(make_model(), 0.5)
    with CompletionServer(make_model(), folder=tmp_path) as server:
        client = Client(server.url, "tiny", sync=ReloadFromFolder(server.url, tmp_path))
        client.update(model)
        assert server.paths == ["/collective_rpc", "/reset_prefix_cache"]
        served = server.model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(served[name], weight)


def test_adapters_travel_inside_the_weights(make_model, make_vector_env, tmp_path) -> None:
    pytest.importorskip("peft")
    env = make_vector_env(8)
    with CompletionServer(make_model(), folder=tmp_path / "served") as server:
        client = Client(server.url, "tiny", sync=ReloadFromFolder(server.url, tmp_path / "served"))
        agent = PPO(
            make_model(), env, lora='{"r": 4, "target_modules": "all-linear"}', sampler=client,
            episodes_per_iteration=8, learning_rate=0.02, log_dir=tmp_path,
        )  # fmt: skip
        agent.learn(1_000, callback=lambda row: len(agent.history) < 2)
    assert agent.history[1]["rollout/sampler_gap"] < 1e-4
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "served")
    assert not any("lora" in name for name in reloaded.state_dict())


# --- What can go wrong


def without(*names):
    return lambda choice, payload: [choice.pop(name) for name in names] and None


def changed(**values):
    return lambda choice, payload: choice.update(values)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (changed(finish_reason="abort"), 'neither "stop" nor "length"'),
        (without("finish_reason"), 'neither "stop" nor "length"'),
        (changed(prompt_token_ids=[1, 7, 8]), r"another prompt than \[7, 8\]"),
        (without("logprobs"), r"lacks logprobs\.token_logprobs"),
        (changed(logprobs={"tokens": ["a"] * 4}), r"lacks logprobs\.token_logprobs"),
        (changed(logprobs={"token_logprobs": [None] * 4}), r"lacks logprobs\.token_logprobs"),
        (changed(token_ids=["a", "b"]), "lacks token ids"),
        (changed(token_ids="abcd"), "lacks token ids"),
        (
            changed(token_ids=None, logprobs={"token_logprobs": [-1.0], "tokens": [" film"]}),
            "knows return_token_ids or return_tokens_as_token_ids",
        ),
        (lambda choice, payload: "a completion", "has not one choice"),
    ],
)
def test_a_malformed_answer_is_refused(server, client, alter, message) -> None:
    server.alter = alter
    with pytest.raises(ServerError, match=message) as error:
        client.sample([REQUEST], RULES, 1.0)
    assert "choices" in str(error.value)  # The message shows the answer.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_ids": [5, 6, 7]}, "stops after 3 tokens"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "tokens and 1 log-probabilities"),
        ({"logprobs": {"token_logprobs": [-9999.0] * 4}}, "log-probability -inf"),
    ],
)
def test_an_answer_that_the_policy_could_not_have_given_is_refused(
    server, client, make_agent, values, message
) -> None:
    server.alter = changed(**values)
    agent = make_agent(PPO, client)
    before = copy.deepcopy(agent.policy.state_dict())
    with pytest.raises(InvalidArgumentError, match=f"episode 0 .*{message}|{message}"):
        agent.learn(1)
    assert agent.history == []  # The iteration is undone.
    assert all(torch.equal(before[name], w) for name, w in agent.policy.state_dict().items())


def test_servers_that_name_tokens_in_the_log_probabilities_alone_will_do(server, client) -> None:
    expected = client.sample([REQUEST], RULES, 1.0)
    server.alter = without("token_ids", "prompt_token_ids")
    assert client.sample([REQUEST], RULES, 1.0) == expected


def test_a_refusal_is_passed_on(server, client) -> None:
    server.status = 503
    with pytest.raises(ServerError, match=r"/v1/completions .*status 503.*out of order"):
        client.sample([REQUEST] * 3, RULES, 1.0)
    server.status = 200
    with pytest.raises(ServerError, match="status 404"):
        Client(server.url + "/v2", "tiny", no_sync)._client.post("/v1/completions", {})


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:  # Bound, but not listening.
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerError, match=f"{url}/v1/completions cannot be reached"):
            Client(url, "tiny", no_sync).sample([REQUEST], RULES, 1.0)


def test_a_server_that_stays_silent_is_given_up(server) -> None:
    server.gate.clear()
    client = Client(server.url, "tiny", no_sync, timeout=0.2)
    with pytest.raises(ServerError, match=r"did not answer within 0\.2 s"):
        client.sample([REQUEST], RULES, 1.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>a proxy</html>", "something else than JSON: <html>a proxy"),
        (b"\xff\xfe", "something else than JSON"),
        (b"", "has not one choice, but n was 1: None"),
        (b"[]", "has not one choice"),
        (b'{"choices": [{}, {}]}', "has not one choice"),
    ],
)
def test_an_answer_that_is_no_completion_is_shown(server, client, body, message) -> None:
    server.body = body
    with pytest.raises(ServerError, match=message):
        client.sample([REQUEST], RULES, 1.0)


def test_a_key_is_sent_if_there_is_one(server) -> None:
    for api_key in (None, "secret"):
        Client(server.url, "tiny", no_sync, api_key=api_key).sample([REQUEST], RULES, 1.0)
    assert server.keys == [None, "Bearer secret"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost:8000"}, {"url": "http://"}, {"url": "http://localhost:port"},
        {"url": 123}, {"model": ""}, {"sync": None}, {"num_threads": 0}, {"timeout": 0},
        {"timeout": True}, {"timeout": float("inf")}, {"api_key": 5},
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_at_once(wrong) -> None:
    good = {"url": "http://localhost:8000", "model": "tiny", "sync": no_sync}
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        Client(**(good | wrong))


@pytest.mark.parametrize("folder", [None, __file__])
def test_weights_need_a_folder(folder) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^folder="):
        ReloadFromFolder("http://localhost:8000", folder)
