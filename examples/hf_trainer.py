"""Hugging Face `Trainer`: the model is compiled before the Trainer gets it.

`TrainingArguments(torch_compile_backend=...)` cannot name "deepep": Accelerate checks it against a
closed list of backends. `nn.Module.compile` changes the model in place, so that the Trainer sees
the class and the parameter names that it knows, and checkpoints are as without it.

    python examples/hf_trainer.py --steps 50
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch
from common_data import parsed, report, sequences
from hf_model import tiny_gpt2
from transformers import Trainer, TrainingArguments


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for (row,) in sequences(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    steps, backend = parsed(arguments)
    torch.manual_seed(0)
    model = tiny_gpt2()
    model.compile(backend=backend)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            save_strategy="no",
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(model, settings, train_dataset=rows(16 * steps))
        trainer.train()
    report([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


if __name__ == "__main__":
    main()
