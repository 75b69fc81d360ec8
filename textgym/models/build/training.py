"""How the embedded models are trained: by the Trainer of transformers, with Muon and AdamW."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from textgym.models.build.optimizer import MuonWithAdamWFactory

__all__ = ["train"]

_SAVE_STEPS = 150


def train(
    model: nn.Module,
    dataset: Any,
    work_folder: Path,
    optimizer: dict[str, float],
    collate: Callable[..., Any] | None = None,
    **settings: Any,
) -> None:
    """Train a model in place. Continues from the last checkpoint if there is one.

    Args:
        model: Its forward returns a loss.
        dataset: The examples, in the order in which they are used.
        work_folder: Holds the checkpoints and the log while training runs.
        optimizer: ``muon_lr``, ``muon_weight_decay`` and ``adamw_lr`` of
            :class:`textgym.models.build.optimizer.MuonWithAdamW`.
        collate: Makes a batch of examples; None for the Trainer's own way.
        **settings: Further fields of ``transformers.TrainingArguments``.
    """
    arguments: dict[str, Any] = {
        "output_dir": str(work_folder),
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "max_grad_norm": 1.0,
        "save_steps": _SAVE_STEPS,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments | settings),
        train_dataset=dataset,
        data_collator=collate,
        optimizer_cls_and_kwargs=(MuonWithAdamWFactory, optimizer),  # type: ignore[arg-type]
    )
    checkpoint = get_last_checkpoint(str(work_folder)) if work_folder.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
