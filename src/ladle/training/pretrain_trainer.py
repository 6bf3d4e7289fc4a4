"""The Trainer of pretraining: packed rows in, and the exact held-out loss where `eval_strategy` asks for it."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ladle.data.store.dataset import MixedDataset
from ladle.training.processes import reduce_tensor
from ladle.training.sequence_aux import SequenceAuxLoss
from ladle.training.trainer import LadleTrainer
from ladle.training.validation import held_out_loss_sum


class PretrainTrainer(LadleTrainer):
    """LadleTrainer on a mixture.

    Args:
        aux_loss: the sequence-wise balance loss that the model's forward adds, for the log; None if it adds none.
    """

    def __init__(self, *args: Any, aux_loss: SequenceAuxLoss | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aux_loss = aux_loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the mean loss in nats over every labelled token of the validation split.

        Its rows are shared among the processes; each token counts once, whatever the batches.
        """
        dataset = cast(MixedDataset, self.eval_dataset if eval_dataset is None else eval_dataset)
        with self.accelerator.autocast():
            sums = held_out_loss_sum(
                cast(PreTrainedModel, self.model),
                dataset,
                self.args.per_device_eval_batch_size,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )
        total, count = torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            total, count = reduce_tensor(self.accelerator, torch.stack([total, count]), "sum")
        metrics = {f"{metric_key_prefix}_loss": (total / count).item(), f"{metric_key_prefix}_tokens": count.item()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.speed.start()
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the balance loss too."""
        if self.aux_loss is not None and "loss" in logs:
            logs = logs | {"experts/sequence_aux_loss": self.aux_loss.last}
        super().log(logs, *args, **kwargs)
