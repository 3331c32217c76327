"""Train a flow on the letters of stories; write sentences out of nothing, and fill holes in sentences it has not seen.

    python examples/text.py                    # about 8 minutes on one core
Text is a sequence of vectors here, one for each character, so a hole in a sentence is a mask like any other. Prints
how many words are real and how many missing letters are found; saves the fills as a picture, and the weights.
Run again, it goes on from its last checkpoint; a finished run is only evaluated.
"""

import argparse
import os
import re
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from flow_matching.path import CondOTProbPath
from torch import nn
from torch.utils.data import DataLoader

from fm_ext.loss import LogitNormalTime, velocity_loss
from fm_ext.mask import Hybrid, RandomEntries, RandomSpans
from fm_ext.models import MaskedVelocityModel, PredictionVelocityModel, UNetWrapper
from fm_ext.path import MaskedProbPath
from fm_ext.solver import ODESolver
from fm_ext.training import Trainer, TrainerConfig, auto_accelerator, leave_to_main

SMOKE = os.environ.get("FM_EXT_SMOKE") == "1"
STORIES = Path(__file__).parent / "data" / "stories"
ALPHABET = " abcdefghijklmnopqrstuvwxyz,."
LENGTH = 64

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--steps", type=int, default=2 if SMOKE else 2500)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--samples", type=int, default=16 if SMOKE else 256)
parser.add_argument("--output", type=Path, default=Path("outputs/text"))
args = parser.parse_args()

accelerator = auto_accelerator()
device = accelerator.device


# ---- text as numbers, and numbers as vectors -------------------------------------------------
def letters(file):
    """The text in small letters, with commas and full stops, as places in the alphabet."""
    text = file.read_text(encoding="utf-8").lower().replace("'", "")
    text = re.sub("[;:]", ",", re.sub("[?!]", ".", text))
    text = re.sub("[^a-z,.]+", " ", text)
    text = re.sub(" (?=[,.])", "", text)
    return torch.tensor([ALPHABET.index(letter) for letter in text], dtype=torch.uint8)


def windows(text):
    """All passages of 64 characters that begin with a word."""
    starts = (text[:-LENGTH] == 0).nonzero()[:, 0] + 1
    return text.unfold(0, LENGTH, 1)[starts[starts <= len(text) - LENGTH]]


def sentences(numbers):
    return ["".join(ALPHABET[i] for i in row) for row in numbers.tolist()]


SCALE = 2.5
table = SCALE * torch.eye(len(ALPHABET), device=device)  # a vector for each character


def nearest(x):
    return torch.cdist(x.float(), table).argmin(-1)


# ---- the network: it predicts the data, as a mean of the table's rows ------------------------
class Letters(nn.Module):
    """Transformer layers over characters, each of which sees three neighbours on either side first."""

    def __init__(self, width=96, depth=3):
        super().__init__()
        self.neighbours = nn.Conv1d(len(ALPHABET) + 1, width, 7, padding=3)  # 1 for the mask
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
        layers = [nn.TransformerEncoderLayer(width, 4, 4 * width, **options) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width), nn.Linear(width, len(ALPHABET)))

    def forward(self, x, t):
        x, mask = x[..., :-1], x[..., -1:]
        t = t[:, None, None].clamp(max=0.95)
        # Bayes: what a state says of its own character, by the noise alone. The network adds what the others say of it.
        evidence = SCALE * x * torch.where(mask > 0, t / (1 - t) ** 2, 10)
        h = self.neighbours(torch.cat([evidence.softmax(-1), mask], -1).mT).mT
        h = nn.functional.gelu(h) + self.place + self.time(t[:, 0])[:, None]
        return (evidence + self.layers(h)).softmax(-1) @ table


torch.manual_seed(args.seed)
model = UNetWrapper(Letters(), concat=("mask",), channel_axis=-1)
path = MaskedProbPath(CondOTProbPath())
times = LogitNormalTime(mean=-1.0)
holes = Hybrid(masks=(RandomEntries(), RandomSpans(spans=(1, 4))))


def loss(model, batch):
    x_1 = table[batch.long()]
    everything = torch.rand(len(x_1), 1, 1, device=device) < 0.3  # to write is to fill everything
    mask = holes(len(x_1), (LENGTH,), device=device).mT | everything  # (batch, length, 1)
    t = times(len(x_1), device=device)
    sample = path.sample(torch.randn_like(x_1), x_1, t, mask=mask)
    predicted = model(x=sample.x_t, t=sample.t, mask=mask)
    return velocity_loss(predicted, sample, prediction="x_1", scheduler=path.scheduler)


train, test = (letters(STORIES / f"{split}.txt") for split in ("train", "test"))
loader = DataLoader(windows(train), batch_size=16, shuffle=True, drop_last=True)
config = TrainerConfig(
    steps=args.steps,
    lr=3e-3,
    warmup=args.steps // 20,
    ema_decay=0.99,
    log_every=min(50, args.steps),
    output_dir=args.output / "checkpoints",
    seed=args.seed,
)
trainer = Trainer(model, loss, loader, config, accelerator)
trainer.fit()
leave_to_main(accelerator)

# ---- write, and fill holes: one velocity, one solver -----------------------------------------
network = trainer.ema_model
velocity = PredictionVelocityModel(network, path.scheduler, prediction="x_1")
solver = ODESolver(MaskedVelocityModel(velocity))


def start(text, mask):
    x_1 = table[text.long()]
    return torch.where(mask, torch.randn_like(x_1), x_1)


def fill(text, mask):
    """Text with its holes filled at random, by the law of what is missing given what is known."""
    steps = 2 if SMOKE else 16
    with accelerator.autocast():
        return nearest(solver.sample(start(text, mask), method="midpoint", steps=steps, mask=mask))


def guess(text, mask):
    """Text with the likeliest character at each place: at t = 0 the network predicts the mean of all fills."""
    with torch.no_grad(), accelerator.autocast():
        mean = network(x=start(text, mask), t=torch.zeros(()), mask=mask)
    return torch.where(mask[..., 0], nearest(mean), text)


def one_word(text, generator):
    """A mask of one word of each passage, of three letters or more and not the last, which may be cut."""
    mask = torch.zeros(len(text), LENGTH, 1, dtype=torch.bool)
    for row, line in zip(mask, sentences(text), strict=True):
        words = [word.span() for word in re.finditer("[a-z]{3,}(?=[^a-z])", line)]
        first, end = words[torch.randint(len(words), (), generator=generator)]
        row[first:end] = True
    return mask.to(device)


def shares(texts):
    """Of words, of pairs of words and of runs of 16 characters: the share that the training text has."""
    lines = [re.findall("[a-z]+", text)[:-1] for text in texts]  # the last word may be cut
    real = [word in WORDS for line in lines for word in line]
    seen = [pair in PAIRS for line in lines for pair in pairwise(line)]
    copied = [text[i : i + 16] in RUNS for text in texts for i in range(len(text) - 15)]
    return [sum(found) / max(len(found), 1) for found in (real, seen, copied)]


def right(filled, mask):
    """The share of missing characters that are right, and of passages in which all are."""
    good = (filled == passages) | ~mask[..., 0]
    return [
        (good & mask[..., 0]).sum().item() / mask.sum().item(),
        good.all(1).float().mean().item(),
    ]


story = "".join(sentences(train[None]))
WORDS = set(re.findall("[a-z]+", story))
PAIRS = set(pairwise(re.findall("[a-z]+", story)))
RUNS = {story[i : i + 16] for i in range(len(story) - 15)}
passages = windows(test).long()
some = torch.Generator().manual_seed(0)
passages = passages[torch.randperm(len(passages), generator=some)[: args.samples]].to(device)
kinds = {
    "a third of the letters": RandomEntries(area=(0.3, 0.36)),
    "8 letters in a row": RandomSpans(spans=(1, 1), area=(1 / 8, 1 / 8)),
}
tests = {
    name: mask(len(passages), (LENGTH,), generator=some).mT.to(device)
    for name, mask in kinds.items()
}
tests["one word"] = one_word(passages, some)

torch.manual_seed(args.seed)
written = fill(passages, torch.ones_like(tests["one word"]))
print(
    "of words, of pairs of words and of 16 characters in a row, the share that the training text has"
)
for name, texts in {"held-out text": passages, "written": written}.items():
    print(f"{name:24}" + "".join(f"{share:8.1%}" for share in shares(sentences(texts))))
print(
    "\nof missing characters and of passages, the share that is filled rightly: drawn, and likeliest"
)
drawn = {name: fill(passages, mask) for name, mask in tests.items()}
likeliest = {name: guess(passages, mask) for name, mask in tests.items()}
for name, mask in tests.items():
    figures = right(drawn[name], mask) + right(likeliest[name], mask)
    print(f"{name:24}" + "".join(f"{share:8.1%}" for share in figures))
print("\n" + "\n".join(sentences(written[:8])))

# ---- a picture: what was missing in red ------------------------------------------------------
plt.figure(figsize=(9, 7)).add_axes((0, 0, 1, 1)).axis("off")
for row in range(12):
    name = list(tests)[row // 4]
    for line, text in enumerate((passages[row], drawn[name][row])):
        hole = tests[name][row, :, 0].tolist()
        height = 0.97 - 0.08 * row - 0.03 * line
        for place, letter in enumerate(sentences(text[None])[0]):
            plt.figtext(
                0.03 + 0.0147 * place,
                height,
                letter,
                family="monospace",
                color="red" if hole[place] else "black",
            )
plt.savefig(args.output / "text.png", dpi=100)
print(f"\nsaved {args.output}/text.png; the weights are in {args.output}/checkpoints")
