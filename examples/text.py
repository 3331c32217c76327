"""Train a flow on the letters of stories; write sentences out of nothing, and fill holes in sentences it has not seen.

    python examples/text.py                     # about 5 minutes on one core
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
from torch.nn.functional import gelu
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
parser.add_argument("--steps", type=int, default=2 if SMOKE else 5000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--samples", type=int, default=16 if SMOKE else 200)
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
    """Convolutions, which see six neighbours on either side, and transformer layers, which see all."""

    def __init__(self, width=96, depth=2):
        super().__init__()
        self.near = nn.Conv1d(len(ALPHABET) + 1, width, 7, padding=3)  # 1 for the mask
        self.wide = nn.Conv1d(width, width, 7, padding=3)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dropout": 0.0}
        layers = [nn.TransformerEncoderLayer(width, 4, 4 * width, **options) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width), nn.Linear(width, len(ALPHABET)))

    def forward(self, x, t):
        x, mask = x[..., :-1], x[..., -1:]
        t = t[:, None, None].clamp(max=0.95)
        # What a state says of its own character, by Bayes' rule; the layers add what the others say of it.
        evidence = SCALE * x * torch.where(mask > 0, t / (1 - t) ** 2, 10)
        h = gelu(self.near(torch.cat([evidence.softmax(-1), mask], -1).mT))
        h = (h + gelu(self.wide(h))).mT + self.place + self.time(t)
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
    x_1 = table[text]
    return torch.where(mask, torch.randn_like(x_1), x_1)


def fill(text, mask):
    """A draw of what is missing given what is known. A state becomes a character once, at the end."""
    return nearest(solver.sample(start(text, mask), method="midpoint", steps=12, mask=mask))


@torch.no_grad()
def fill_with_noise(text, mask, steps=48, amount=16.0):
    """As `fill`, but each step goes back in time first, by fresh noise, and so mends what earlier ones did wrong."""
    x = start(text, mask)
    for now, then in pairwise(torch.linspace(0, 1, steps + 1, device=device)):
        kept = 1 - amount * (then - now)
        back = kept * now
        # What is left of the old noise, and as much new one as makes it the noise of the time `back`.
        new = ((1 - back) ** 2 - (kept * (1 - now)) ** 2).sqrt()
        x = torch.where(mask, kept * x + new * torch.randn_like(x), x)
        x = x + (then - back) * velocity(x=x, t=back, mask=mask)
    return nearest(x)


@torch.no_grad()
def guess(text, mask):
    """The likeliest character for each hole: at t = 0 the network predicts the mean of all fills."""
    mean = network(x=start(text, mask), t=torch.zeros(()), mask=mask)
    return torch.where(mask[..., 0], nearest(mean), text)


def one_word(text, generator):
    """A mask of one word of each passage, of three letters or more and not the last, which may be cut."""
    mask = torch.zeros(len(text), LENGTH, 1, dtype=torch.bool)
    for row, line in zip(mask, sentences(text), strict=True):
        words = [word.span() for word in re.finditer("[a-z]{3,}(?=[^a-z])", line)]
        first, end = words[torch.randint(len(words), (), generator=generator)]
        row[first:end] = True
    return mask


some = torch.Generator().manual_seed(0)
passages = windows(test).long()
passages = passages[torch.randperm(len(passages), generator=some)[: args.samples]]
size = (len(passages), (LENGTH,))
masks = {
    "a third of the letters": RandomEntries(area=(0.3, 0.36))(*size, generator=some).mT,
    "8 in a row": RandomSpans(spans=(1, 1), area=(1 / 8, 1 / 8))(*size, generator=some).mT,
    "one word": one_word(passages, some),
}
passages, masks = passages.to(device), {name: mask.to(device) for name, mask in masks.items()}
torch.manual_seed(args.seed)
written = fill(passages, torch.ones_like(masks["one word"]))
drawn = {name: fill(passages, mask) for name, mask in masks.items()}
rewritten = fill_with_noise(passages, torch.ones_like(masks["one word"]))
guessed = {name: guess(passages, mask) for name, mask in masks.items()}

# ---- what it is worth ------------------------------------------------------------------------
(story,) = sentences(train[None])
WORDS = set(re.findall("[a-z]+", story))
PAIRS = set(pairwise(re.findall("[a-z]+", story)))
RUNS = {story[i : i + 16] for i in range(len(story) - 15)}


def shares(texts):
    """The shares of words, pairs of words and runs of 16 characters that the training text has; of distinct words."""
    lines = [re.findall("[a-z]+", text)[:-1] for text in texts]  # the last word may be cut
    real = [word in WORDS for line in lines for word in line]
    seen = [pair in PAIRS for line in lines for pair in pairwise(line)]
    copied = [text[i : i + 16] in RUNS for text in texts for i in range(len(text) - 15)]
    found = [sum(each) / max(len(each), 1) for each in (real, seen, copied)]
    return [*found, len({word for line in lines for word in line}) / max(len(real), 1)]


def right(filled, mask):
    """The share of missing characters that are found."""
    return (filled == passages)[mask[..., 0]].double().mean().item()


print(
    "in the training text are, of words, pairs of words and 16 characters in a row; distinct words:"
)
authors = {"people, held out": passages, "the flow": written, "the flow, with noise": rewritten}
for name, texts in authors.items():
    print(f"{name:24}" + "".join(f"{share:8.1%}" for share in shares(sentences(texts))))
print("missing characters found, likeliest and drawn:")
for name, mask in masks.items():
    print(f"{name:24}{right(guessed[name], mask):8.1%}{right(drawn[name], mask):8.1%}")
print("written, and with noise:", *sentences(written[:4]), *sentences(rewritten[:4]), sep="\n")
print("filled (the text, its hole, the likeliest characters, a draw):")
for first, (name, mask) in enumerate(masks.items()):
    for row in range(4 * first, min(4 * first + 2, len(passages))):
        letters_and_holes = zip(*sentences(passages[row, None]), mask[row, :, 0], strict=True)
        print(*sentences(passages[row, None]))
        print("".join("_" if hole else letter for letter, hole in letters_and_holes))
        print(*sentences(guessed[name][row, None]), *sentences(drawn[name][row, None]), sep="\n")

plt.figure(figsize=(10, 9))
plt.axis("off")
for row in range(min(12, len(passages))):
    name = list(masks)[row // 4]
    for line, text in enumerate((passages[row], guessed[name][row], drawn[name][row])):
        for column, (number, hole) in enumerate(zip(text, masks[name][row, :, 0], strict=True)):
            color = "tab:red" if hole and line else "tab:green" if hole else "black"
            place = {"x": column / 64, "y": 1 - row / 12 - line / 42, "color": color}
            plt.text(s=ALPHABET[number], family="monospace", **place)
plt.savefig(args.output / "text.png", dpi=100, bbox_inches="tight")
print(f"saved {args.output}/text.png; the weights are in {args.output}/checkpoints")
