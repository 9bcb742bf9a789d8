"""Train a small transformer by transformers' Trainer, and keep a checkpoint an epoch.

    python benchmarks/transformer.py --output run                # half a minute on 2 cores
    python -m utils.cmd_utils run --modes 6 --output described
    python visualize.py modes --described described

It learns the next byte of the descriptions of scikit-learn's data sets, which need no download.
The checkpoints are an example of a series for the command; nothing is measured.
"""

import sys
from importlib.resources import files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils import logging

from utils.system.arguments import Parser, at_least

LENGTH, WIDTH, LAYERS, HEADS = 64, 64, 2, 4


class Text(torch.utils.data.Dataset):
    """Pieces of a text of LENGTH bytes each."""

    def __init__(self) -> None:
        """Read the text."""
        folder = files("sklearn.datasets.descr")
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".rst"))
        text = b"\n".join((folder / name).read_bytes() for name in names)
        whole = len(text) // LENGTH * LENGTH
        self.pieces = torch.tensor(list(text[:whole])).view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.pieces[index], "labels": self.pieces[index]}


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = Parser(prog="benchmarks/transformer.py", description=__doc__)
    parser.add_argument("--output", default="run", metavar="DIR", help="where checkpoints go")
    parser.add_argument("--epochs", type=at_least(2), default=30, metavar="T")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    settings = TrainingArguments(
        output_dir=args.output, num_train_epochs=args.epochs, per_device_train_batch_size=32,
        learning_rate=2e-3, lr_scheduler_type="constant", save_strategy="epoch", report_to=[],
        logging_strategy="epoch", use_cpu=not torch.cuda.is_available(), seed=0,
    )  # fmt: skip
    Trainer(GPT2LMHeadModel(config), settings, train_dataset=Text()).train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
