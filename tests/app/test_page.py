"""The page, run by Streamlit without a browser."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from flow_matching.path import CondOTProbPath
from streamlit.testing.v1 import AppTest

from fm_ext.app.hole import draw_hole
from fm_ext.app.picture import EXAMPLES
from fm_ext.hub import FlowModel, fill_picture, open_picture
from fm_ext.models import MLP


def script(models):
    from fm_ext.app.page import page

    page("cpu", models)


@pytest.fixture
def open_page(folders):
    def run(*names):
        models = [str(folders.get(name, name)) for name in names]
        test = AppTest.from_function(script, args=(models,))
        test.default_timeout = 60
        return good(test.run())

    return run


def good(test):
    assert not test.exception, test.exception
    return test


def labelled(widgets, label):
    return next(widget for widget in widgets if widget.label == label)


def press(test, label):
    return good(labelled(test.button, label).click().run())


def fills(test):
    return test.session_state[f"rows {test.selectbox[0].value}"][0].fills


def to_bytes(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def upload(test, name, content):
    test.file_uploader[0].set_value((name, content, "image/png"))
    return good(test.run())


@pytest.mark.parametrize("name", ["digits", "portraits", "garments"])
def test_every_control_explains_itself_in_a_sentence(open_page, name):
    test = open_page(name)
    if test.radio:
        test = good(test.radio[0].set_value("FreeForm").run())
        if not (toggle := test.toggle[0]).disabled:
            test = good(toggle.set_value(True).run())
    controls = [*test.button, *test.selectbox, *test.slider, *test.radio, *test.toggle]
    controls += [*test.file_uploader, *test.number_input]
    assert len(controls) > 6
    for control in controls:
        assert control.help.endswith("."), control.label


def test_the_page_fills_as_the_library_does(open_page, folders):
    test = open_page("digits")
    assert labelled(test.button, "Fill").disabled  # nothing is painted yet
    test = good(test.radio[0].set_value("FreeForm").run())
    test = press(test, "Another")
    labelled(test.slider, "Fills").set_value(3)
    test.number_input[0].set_value(7)
    test = press(test, "Fill")
    picture = open_picture(EXAMPLES["digit_eight"])
    expected = fill_picture(
        FlowModel.from_pretrained(folders["digits"]),
        picture,
        draw_hole("FreeForm", 0.25, (28, 28), seed=1),
        fills=3,
        generator=torch.Generator().manual_seed(7),
    )
    assert fills(test) == [to_bytes(picture) for picture in expected]
    assert len(test.get("download_button")) == 3 + 3  # hole, heat map and film beside the fills


def test_the_trained_and_a_training_free_solver_stand_side_by_side(open_page):
    test = open_page("digits")
    test.radio[0].set_value("CenterBox")
    test = good(test.toggle[0].set_value(True).run())
    labelled(test.slider, "Steps, training-free").set_value(3)
    test = press(test, "Fill")
    rows = [line.value for line in test.markdown if line.value.startswith("**T")]
    assert [row[2:].split(",")[0] for row in rows] == [
        "Trained to fill: midpoint",
        "Training-free: moment_matching",
    ]


def test_two_sessions_share_neither_picture_nor_seed_nor_result(open_page):
    one, other = open_page("digits"), open_page("digits")
    one = upload(one, "mine.png", to_bytes(PIL.Image.new("L", (28, 28), 200)))
    one.number_input[0].set_value(5)
    one = press(good(one.radio[0].set_value("CenterBox").run()), "Fill")
    other = press(good(other.radio[0].set_value("CenterBox").run()), "Fill")
    assert other.number_input[0].value == 0 and other.file_uploader[0].value is None
    assert not set(fills(one)) & set(fills(other))
    alone = press(good(open_page("digits").radio[0].set_value("CenterBox").run()), "Fill")
    assert fills(other) == fills(alone)


def black_png(side):
    """A whole file of one bit a pixel; Pillow would take seconds for 10^9 of them."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (1 + -(-side // 8))), 1)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


EXIF = PIL.Image.Exif()
EXIF[0x0112] = 6  # orientation: turned by a quarter
GREY = PIL.Image.new("L", (20, 30), 100)
CUT = to_bytes(PIL.Image.effect_noise((64, 64), 50))[:-900]
BAD = {
    "text.png": (b"no picture", "no picture of a known format"),
    "large.png": (black_png(31_623), "more than 64,000,000 pixels"),
    "film.gif": (
        to_bytes(GREY, "GIF", save_all=True, append_images=[PIL.Image.new("L", (20, 30))]),
        "animated",
    ),
    "cut.png": (CUT, "damaged"),
    "deep.png": (to_bytes(PIL.Image.new("I;16", (9, 9))), "more than 8 bits"),
}
GOOD = {
    "turned.jpg": (to_bytes(GREY, "JPEG", exif=EXIF), (30, 20)),
    "clear.png": (to_bytes(PIL.Image.new("RGBA", (20, 30), (9, 200, 30, 0))), (20, 30)),
    "cmyk.jpg": (to_bytes(PIL.Image.new("CMYK", (20, 30)), "JPEG"), (20, 30)),
    "palette.gif": (to_bytes(GREY.convert("P"), "GIF"), (20, 30)),
}


def test_bad_pictures_get_a_sentence_and_the_session_lives_on(open_page):
    test = open_page("digits")
    for name, (content, said) in BAD.items():
        test = upload(test, name, content)
        assert len(test.error) == 1 and said in test.error[0].value
        assert test.error[0].value.startswith(name)
    for size in ((20, 30), (50, 40)):
        test = upload(test, "good.png", to_bytes(PIL.Image.new("L", size, 100)))
        assert not test.error
        test = press(good(test.radio[0].set_value("CenterBox").run()), "Fill")
        assert [PIL.Image.open(io.BytesIO(fill)).size for fill in fills(test)] == [size] * 4


@pytest.mark.parametrize("name", GOOD)
def test_pictures_of_every_kind_are_filled_at_their_own_size(open_page, name):
    content, size = GOOD[name]
    test = upload(open_page("digits"), name, content)
    labelled(test.slider, "Fills").set_value(1)
    test = press(good(test.radio[0].set_value("CenterBox").run()), "Fill")
    (filled,) = fills(test)
    assert PIL.Image.open(io.BytesIO(filled)).size == size


@pytest.mark.parametrize(
    "mask, said",
    [
        (PIL.Image.new("L", (5, 5), 255), "5x5"),
        (PIL.Image.new("L", (28, 28), 255), "all white"),
        (PIL.Image.new("L", (28, 28), 0), "no white"),
    ],
)
def test_bad_masks_get_a_sentence(open_page, mask, said):
    test = good(open_page("digits").radio[0].set_value("Upload").run())
    labelled(test.file_uploader, "Mask").set_value(("mask.png", to_bytes(mask), "image/png"))
    test = good(test.run())
    assert said in test.error[0].value and labelled(test.button, "Fill").disabled


def test_a_large_picture_and_its_mask_are_scaled_down_and_the_page_says_so(open_page):
    test = upload(open_page("digits"), "large.png", to_bytes(PIL.Image.new("L", (2048, 1024))))
    assert "2048x1024 to 1024x512" in " ".join(caption.value for caption in test.caption)
    test = good(test.radio[0].set_value("Upload").run())
    mask = np.zeros((1024, 2048), np.uint8)
    mask[400:600, 900:1100] = 255
    content = to_bytes(PIL.Image.fromarray(mask))
    labelled(test.file_uploader, "Mask").set_value(("mask.png", content, "image/png"))
    labelled(test.slider, "Fills").set_value(1)
    test = press(good(test.run()), "Fill")
    assert PIL.Image.open(io.BytesIO(fills(test)[0])).size == (1024, 512)


def test_a_class_is_generated_and_a_garment_translated(open_page):
    test = open_page("digits", "garments")
    labelled(test.slider, "Count").set_value(3)
    class_of_samples = [box for box in test.selectbox if box.label == "Class"][1]
    test = press(good(class_of_samples.set_value("3").run()), "Generate")
    assert f"samples {test.selectbox[0].value}" in test.session_state
    test = good(test.selectbox[0].select_index(1).run())
    test = press(test, "Translate")
    assert f"translation {test.selectbox[0].value}" in test.session_state


def test_a_model_is_named_or_uploaded_and_what_is_wrong_is_told(open_page, folders, tmp_path):
    test = open_page(str(tmp_path), "mnits", "garments")
    assert "config.json" in test.error[0].value and not test.tabs
    test = good(test.selectbox[0].select_index(1).run())
    assert "mnits" in test.error[0].value
    test = good(test.selectbox[0].select_index(2).run())
    assert [tab.label for tab in test.tabs] == ["Translate"]
    test = good(test.selectbox[0].set_value("upload a model's files").run())
    files = {p.name: p.read_bytes() for p in folders["portraits"].iterdir()}
    (uploader,) = test.file_uploader
    uploader.set_value([("config.json", files["config.json"], "text/plain")])
    test = good(test.run())
    assert "model.safetensors" in test.error[0].value
    test.file_uploader[0].set_value([(n, content, "text/plain") for n, content in files.items()])
    test = good(test.run())
    assert not test.error and [tab.label for tab in test.tabs] == ["Fill a hole"]


def test_a_model_of_no_pictures_is_refused(open_page, tmp_path):
    FlowModel(MLP(2), CondOTProbPath(), shape=(2,), data_range=None).save_pretrained(tmp_path)
    test = open_page(str(tmp_path))
    assert "shape (2,)" in test.error[0].value and not test.tabs


def test_an_error_of_a_run_is_a_sentence(open_page, monkeypatch):
    def fail(*_, **__):
        raise ValueError("`steps` must be something else.")

    monkeypatch.setattr(FlowModel, "sample", fail)
    test = press(open_page("digits"), "Generate")
    assert test.error[0].value == "`steps` must be something else."
    monkeypatch.undo()
    assert not press(test, "Generate").error


def test_without_streamlit_the_import_says_what_to_install():
    code = "import sys; sys.modules['streamlit'] = None; import fm_ext.app"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "fm_ext[app]"' in run.stderr.splitlines()[-1]
