"""The command line: what it writes, and the sentence that it says instead."""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from flow_matching.path import CondOTProbPath

from fm_ext.__main__ import MASKS, main
from fm_ext.coupling import NoisySource
from fm_ext.hub import FlowModel, Sampler
from fm_ext.models import SmallUNet, UNet, UNetWrapper
from fm_ext.path import CoupledProbPath, MaskedProbPath


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a picture, a mask, and models that fill and sample, and translate."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    PIL.Image.fromarray(pixels).save("picture.png")
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 10:30] = 255
    PIL.Image.fromarray(mask).save("mask.png")
    network = UNet(
        2, 1, channels=8, head_channels=8, multipliers=(1,), attention=(), num_classes=10
    )
    tasks, quick = ("sample", "fill"), Sampler(steps=1)
    flow = FlowModel(
        UNetWrapper(network, concat=("mask",)),
        MaskedProbPath(CondOTProbPath()),
        shape=(1, 8, 8),
        classes=tuple("0123456789"),
        tasks=tasks,
        samplers=dict.fromkeys(tasks, quick),
    )
    flow.save_pretrained("digits")
    path = CoupledProbPath(CondOTProbPath(), NoisySource(0.5))
    model = UNetWrapper(SmallUNet(1))
    how = {"translate": quick}
    FlowModel(model, path, shape=(1, 8, 8), source="image", samplers=how).save_pretrained("turned")
    return tmp_path


def read(name: str) -> np.ndarray:
    return np.asarray(PIL.Image.open(name))


def test_known_pixels_are_kept_byte_for_byte(place, capsys):
    assert main(["fill", "picture.png", "--mask", "mask.png", "--model", "./digits"]) == 0
    known = read("mask.png") == 0
    assert (read("filled.png")[known] == read("picture.png")[known]).all()
    assert (read("filled.png")[~known] != read("picture.png")[~known]).any()
    assert "25% of 40x30 pixels filled by ./digits (8x8)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_drawn_and_can_be_used_again(kind, place):
    call = ["fill", "picture.png", "--model", "./digits", "--label", "3"]
    assert main([*call, "--mask", kind, "--mask-output", "drawn.png", "--fills", "2"]) == 0
    first = [read(f"filled_{i}.png") for i in (1, 2)]
    known = ~read("drawn.png")
    assert known.any() and not known.all()
    for fill in first:
        assert (fill[known] == read("picture.png")[known]).all()
    assert (first[0] != first[1]).any()
    assert main([*call, "--mask", "drawn.png", "--seed", "1"]) == 0


def test_a_seed_repeats_and_another_does_not(place):
    results = []
    for seed in (0, 0, 1):
        assert main(["sample", "--model", "./digits", "--count", "5", "--seed", str(seed)]) == 0
        results.append(read("grid.png"))
    assert results[0].shape == (28, 19) and (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()


def test_many_samples_are_drawn_in_parts(place, monkeypatch):
    monkeypatch.setattr("fm_ext.__main__.BATCH", 3)
    call = ["sample", "--model", "./digits", "--count", "7", "--columns", "7", "--label", "9"]
    assert main([*call, "--output", "seven.png", "--steps", "2", "--guidance", "2"]) == 0
    assert read("seven.png").shape == (10, 64)


def test_a_picture_is_translated(place):
    assert main(["translate", "picture.png", "--model", "./turned"]) == 0
    assert read("translated.png").shape == (8, 8)


FILL = ["fill", "picture.png", "--model", "./digits"]
WRONG = {
    "must be a picture or one of CenterBox, FreeForm.*got 'Circle', which is no file": [
        *FILL,
        "--mask",
        "Circle",
    ],
    "No such file or directory: 'none.png'": ["fill", "none.png", "--mask", "FreeForm"],
    "'words.png' is no picture of a known format": ["fill", "words.png", "--mask", "FreeForm"],
    "must have the picture's 8x8": ["fill", "small.png", "--mask", "mask.png"],
    "`name` must be a shipped model": ["sample", "--model", "mnits"],
    "`label` must be a number from 0 to 9 .*got 'cat'": [
        *FILL,
        "--mask",
        "FreeForm",
        "--label",
        "cat",
    ],
    "not trained to translate": ["translate", "picture.png", "--model", "./digits"],
    "--count and --columns must be at least 1": ["sample", "--model", "./digits", "--count", "0"],
    "`revision` must be None": ["sample", "--model", "./digits", "--revision", "main"],
    "`fills` must be": [*FILL, "--mask", "FreeForm", "--fills", "0"],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_told_in_a_line(message, place, capsys, untyped):
    (place / "words.png").write_text("hello")
    PIL.Image.new("L", (8, 8)).save("small.png")
    assert main(WRONG[message]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            [*FILL, "--mask", "FreeForm", "--output", "filled.jpg"],
            "must end in .png, which keeps every pixel",
        ),
        (
            [*FILL, "--mask", "FreeForm", "--output", "no/filled.png"],
            "the folder of .* does not exist",
        ),
        ([*FILL, "--mask", "FreeForm", "--paint"], "unrecognized arguments: --paint"),
        (["paint"], "invalid choice"),
    ],
)
def test_a_wrong_argument_is_told_with_the_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    with pytest.raises(ValueError, match=message):
        raise ValueError(capsys.readouterr().err)


def test_help_and_wrong_arguments_are_answered_without_importing_torch():
    code = "import sys, fm_ext.__main__; print('torch' in sys.modules or 'PIL' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_torch_is_seeded_by_the_seed_alone(place):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert main(["sample", "--model", "./digits", "--count", "2"]) == 0
    assert torch.equal(state, torch.get_rng_state())
