"""What scale.py counts, held against PyTorch and transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from counting.cases import Case
from counting.measurements import measure_forward, measure_iterations
from counting.memory import activations, count_memory
from counting.models import make_agent, make_model
from counting.operations import count_operations
from counting.shapes import EMBEDDED, SHAPES, Shape
from counting.traffic import count_traffic, predict_seconds
from counting.work import Choices, Work
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from textgym.agents.lora import add_lora
from textgym.agents.policy import LanguageModelPolicy
from textgym.models.incremental.lean import LeanDecoder

GPT2 = Shape(
    name="tiny GPT-2", kind="gpt2", layers=3, width=64, heads=4, key_heads=4, head_size=16, mlp=256,
    vocabulary=300, positions=64, is_tied=True,
)  # fmt: skip
LLAMA = Shape(
    name="tiny Llama", kind="llama", layers=6, width=64, heads=4, key_heads=2, head_size=16,
    mlp=176, vocabulary=300,
)  # fmt: skip
QWEN2 = dataclasses.replace(LLAMA, name="tiny Qwen2", kind="qwen2", is_tied=True)
QWEN3 = dataclasses.replace(LLAMA, name="tiny Qwen3", kind="qwen3")
TINY = [GPT2, LLAMA, QWEN2, QWEN3]
WORK = Work(episodes=4, prompt=5, steps=7, epochs=2, minibatch=2)


def named(shape):
    return shape.name


# --- Parameters


@pytest.mark.parametrize("shape", [*SHAPES.values(), *TINY], ids=named)
def test_parameters_are_those_that_the_library_counts(shape):
    sizes = shape.config()
    config = AutoConfig.for_model(sizes.pop("model_type"), num_labels=1, **sizes)
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(config)
        reward_model = AutoModelForSequenceClassification.from_config(config)
        linear = [m for n, m in language_model.named_modules() if hasattr(m, "weight")]
    assert shape.parameters == language_model.num_parameters()
    assert shape.scorer == reward_model.num_parameters()
    head = language_model.get_output_embeddings()
    matrices = [m.weight for m in linear if m.weight.dim() == 2]
    embeddings = [m.weight for m in linear if isinstance(m, torch.nn.Embedding)]
    kept = {id(w) for w in embeddings} | {id(head.weight)}
    assert shape.matrices == sum(w.numel() for w in matrices if id(w) not in kept)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("shape", TINY, ids=named)
def test_adapters_are_those_that_peft_adds(shape):
    pytest.importorskip("peft")
    model = make_model(shape)
    add_lora(model, {"r": 4})
    added = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert shape.adapters(4) == added
    assert shape.adapters(0) == 0


def test_the_embedded_shape_is_that_of_the_model_that_ships():
    from textgym.models import load_language_model, load_reward_model

    assert load_language_model("embedded").num_parameters() == EMBEDDED.parameters
    model = load_reward_model("embedded").model  # with two outputs
    assert model.num_parameters() == EMBEDDED.scorer + EMBEDDED.width


# --- Operations


def operations_of_an_iteration(shape, choices, tmp_path, monkeypatch):
    """What PyTorch counts in a whole iteration; eager attention consists of plain products."""
    monkeypatch.setattr(LeanDecoder, "knows", lambda module: False)  # its products are not counted
    agent = make_agent(shape, GPT2, WORK, choices, tmp_path, attn_implementation="eager")
    agent.learn(1)  # The first iteration also checks that the model can be read token by token.
    with FlopCounterMode(display=False) as counter:
        agent.learn(1)
    return counter.get_total_flops()


@pytest.mark.parametrize("recomputes", [False, True])
def test_operations_of_full_training_are_those_that_pytorch_counts(
    recomputes, tmp_path, monkeypatch
):
    choices = Choices(recomputes=recomputes)
    counted = operations_of_an_iteration(GPT2, choices, tmp_path, monkeypatch)
    assert counted == count_operations(GPT2, GPT2, WORK, choices).total


@pytest.mark.parametrize("shape", [LLAMA, QWEN2], ids=named)
@pytest.mark.parametrize("choices", [Choices(rank=4), Choices(), Choices(recomputes=True)])
def test_operations_are_close_to_those_that_pytorch_counts(shape, choices, tmp_path, monkeypatch):
    counted = operations_of_an_iteration(shape, choices, tmp_path, monkeypatch)
    # The tables of rotary positions are products, too, and LoRA's first layer passes nothing on.
    expected = count_operations(shape, GPT2, WORK, choices).total
    assert counted == pytest.approx(expected, rel=0.03)


def test_operations_grow_with_what_is_done():
    def total(work=WORK, choices=None):
        return count_operations(LLAMA, LLAMA, work, choices or Choices()).total

    assert total(dataclasses.replace(WORK, episodes=8)) == 2 * total()
    assert total(dataclasses.replace(WORK, minibatch=4)) == total()
    assert total(choices=Choices(rank=4)) < total() < total(choices=Choices(recomputes=True))


# --- Memory


def stored(policy, work) -> float:
    """Bytes that autograd stores in a forward pass of a minibatch, without weights and logits."""
    kept, sizes = [], {}
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    of_weights = {tuple(p.shape) for p in policy.parameters() if p.dim() == 2}
    of_weights |= {shape[::-1] for shape in of_weights}

    def pack(tensor):
        storage = tensor.untyped_storage()
        is_cast = tuple(tensor.shape) in of_weights  # a weight in bfloat16, for autocast
        if storage.data_ptr() not in weights and not is_cast:
            kept.append(tensor)
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    num_tokens = work.prompt + work.steps
    ids = torch.randint(3, 200, (work.minibatch, num_tokens))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.evaluate(ids, mask, mask[:, work.prompt :])
    logits = work.minibatch * work.steps * policy.model.config.vocab_size
    return sum(sizes.values()) - logits * (2 if policy.autocast_dtype else 4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("is_bfloat16", [False, True])
@pytest.mark.parametrize("shape", TINY, ids=named)
def test_activations_are_those_that_autograd_stores(shape, is_bfloat16, rank):
    choices = Choices(rank=rank, is_bfloat16=is_bfloat16)
    work = dataclasses.replace(WORK, minibatch=3, prompt=20, steps=3)
    model = make_model(shape, torch.bfloat16 if is_bfloat16 and rank else torch.float32)
    if rank:
        pytest.importorskip("peft")
        add_lora(model, {"r": rank})
    policy = LanguageModelPolicy(model, autocast_dtype=torch.bfloat16 if is_bfloat16 else None)
    assert activations(shape, work, choices) == pytest.approx(stored(policy, work), rel=0.06)


def tensors_of(*holders) -> Iterator[torch.Tensor]:
    for holder in holders:
        if isinstance(holder, torch.Tensor):
            yield holder
            if holder.grad is not None:
                yield holder.grad
        elif isinstance(holder, dict):
            yield from tensors_of(*holder.values())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    "choices", [Choices(), Choices(is_bfloat16=True), Choices(rank=4)], ids=str
)
def test_what_is_kept_is_what_the_agent_holds(choices, tmp_path):
    if choices.rank:
        pytest.importorskip("peft")
    agent = make_agent(LLAMA, GPT2, WORK, choices, tmp_path)
    agent.learn(2 * WORK.episodes * WORK.steps)
    reward_model = agent.env.unwrapped.task.reward_model.model
    modules = {agent.policy, agent.ref_policy, reward_model}
    held = tensors_of(
        *(p for module in modules for p in module.parameters()),
        dict(enumerate(agent.optimizer.state.values())),
        agent._snapshot._tensors,
    )
    sizes = {t.data_ptr(): t.untyped_storage().nbytes() for t in held if t.numel() > 1}
    counted = count_memory(LLAMA, GPT2, WORK, choices).kept
    assert counted == pytest.approx(sum(sizes.values()), rel=0.002)


def test_recomputation_keeps_the_inputs_of_layers_and_one_layer():
    plain = activations(LLAMA, WORK, Choices())
    sparing = activations(LLAMA, WORK, Choices(recomputes=True))
    tokens = WORK.minibatch * WORK.fed
    assert sparing == plain / LLAMA.layers + LLAMA.layers * tokens * LLAMA.width * 4


def test_an_untrained_copy_needs_neither_gradients_nor_moments():
    full, lora = (count_memory(LLAMA, LLAMA, WORK, Choices(rank=rank)) for rank in (0, 4))
    assert full.kept - full.reward_model == pytest.approx(32 * LLAMA.parameters, rel=1e-3)
    assert lora.reference == 0
    assert lora.kept < 0.4 * full.kept


def test_making_an_agent_with_adapters_may_take_more_than_training_it():
    small = dataclasses.replace(WORK, minibatch=1)
    here, on_gpu = (
        count_memory(LLAMA, LLAMA, small, Choices(rank=4, is_on_cpu=cpu)) for cpu in (True, False)
    )
    assert here.construction == here.reward_model + here.weights + here.loaded
    assert here.peak >= here.construction
    assert on_gpu.construction == 0


# --- Time


def test_seconds_are_those_of_arithmetic_and_of_memory():
    arguments = LLAMA, LLAMA, WORK, Choices()
    operations, traffic = count_operations(*arguments).total, count_traffic(*arguments)
    assert predict_seconds(*arguments, operations, 1e99) == pytest.approx(1)
    assert predict_seconds(*arguments, 1e99, traffic) == pytest.approx(1)
    assert predict_seconds(*arguments, operations, traffic) == pytest.approx(2)


def test_smaller_minibatches_move_more_bytes():
    smaller = dataclasses.replace(WORK, minibatch=1)
    assert count_traffic(LLAMA, LLAMA, smaller, Choices()) > count_traffic(
        LLAMA, LLAMA, WORK, Choices()
    )


# --- Measurements


def test_iterations_are_measured_beside_the_machine(monkeypatch):
    monkeypatch.setattr("counting.measurements._BUFFER", 2**16)
    rows = measure_iterations(Case(policy=LLAMA, choices=Choices(), work=WORK), 2)
    assert rows["iteration"].tolist() == [1, 2]
    assert (rows[["seconds", "gigaflops", "gigabytes_per_second"]] > 0).all(axis=None)
    assert (rows["peak_mib"] >= rows["start_mib"]).all()


def test_memory_of_a_pass_is_what_is_counted():
    shape = dataclasses.replace(LLAMA, layers=8)
    work = Work(episodes=4, prompt=60, steps=4, minibatch=4)
    plain, sparing = (
        measure_forward(Case(policy=shape, choices=Choices(recomputes=recomputes), work=work))
        for recomputes in (False, True)
    )
    counted = activations(shape, work, Choices()) + 4 * 4 * 4 * shape.vocabulary
    assert plain["forward_megabytes"][0] == pytest.approx(counted / 1e6, rel=0.1)
    assert sparing["update_megabytes"][0] < 0.5 * plain["update_megabytes"][0]
