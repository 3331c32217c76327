"""The app in a real browser: Chromium without a window, driven by Selenium.

    FM_EXT_SCREENSHOTS=docs/content/images pytest -n0 tests/app/test_browser.py -k pictures_of_the_docs

writes the pictures of the docs page.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from fm_ext.hub import shipped_names

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = shutil.which("chromedriver")
CHROME = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    not (CHROME and DRIVER),
    reason="needs chromium and chromedriver: apt-get install chromium-driver",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
PATIENCE = 60  # seconds, on a loaded machine


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder that the server is started in, and takes for its home."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def address(folders, home, tmp_path_factory) -> Iterator[str]:
    """Where a server of the app answers."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fm_ext", "app", "--no-browser", f"--port={port}"]
    command += [f"--model={folder}" for folder in folders.values()]
    out = tmp_path_factory.mktemp("server")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    env |= {
        "HOME": str(home),
        "TMPDIR": str(out),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (out / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log)
    try:
        url = f"http://localhost:{port}"
        WebDriverWait(None, PATIENCE, 0.2).until(
            lambda _: healthy(url) or server.poll() is not None
        )
        assert server.poll() is None, (out / "log").read_text()
        yield url
        assert "Uncaught app" not in (out / "log").read_text(), (out / "log").read_text()
    finally:
        server.terminate()
        server.wait()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health") as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def chrome(tmp_path_factory) -> Iterator["webdriver.Chrome"]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield chrome
    finally:
        chrome.quit()


class Page:
    """What a person does on the page."""

    def __init__(self, chrome: "webdriver.Chrome", address: str):
        self.chrome = chrome
        chrome.get(address)
        self.canvas()

    def wait(self, condition):
        """What `condition()` gives when it is true."""
        waiting = WebDriverWait(
            self.chrome,
            PATIENCE,
            poll_frequency=0.1,
            ignored_exceptions=(StaleElementReferenceException, IndexError, AttributeError),
        )
        return waiting.until(lambda _: condition())

    def all(self, xpath: str):
        return [e for e in self.chrome.find_elements(By.XPATH, xpath) if e.is_displayed()]

    def button(self, name: str):
        return self.all(f"//button[not(@role='tab')][normalize-space()='{name}']")[0]

    def press(self, name: str) -> None:
        self.wait(lambda: self.button(name).is_enabled())
        self.wait(lambda: self.click(self.button(name)))

    def click(self, element) -> bool:
        """Clicks in the middle of the screen, where nothing lies above."""
        self.centre(element)
        element.click()
        return True

    def centre(self, element) -> None:
        self.chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)

    def choose(self, label: str, option: str) -> None:
        """Types into a select box and takes what it finds, or what was typed."""
        box = self.wait(
            lambda: self.all(f"//input[@role='combobox'][@aria-label[contains(., '{label}')]]")[0]
        )
        self.click(box)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(option, Keys.ENTER)

    def brush(self):
        """The component's shadow root."""
        return self.chrome.execute_script(
            "for (const e of document.querySelectorAll('[data-testid^=stBidi]'))"
            " if (e.shadowRoot?.querySelector('.brush')) return e.shadowRoot;"
        )

    def canvas(self):
        return self.wait(lambda: self.brush().find_element(By.CSS_SELECTOR, "canvas"))

    def painted(self) -> float:
        """The painted share of the canvas."""
        return self.chrome.execute_script(
            "const c = arguments[0], p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let n = 0; for (let i = 3; i < p.length; i += 4) n += p[i] > 127; return 4 * n / p.length;",
            self.canvas(),
        )

    def paint(self) -> None:
        """A stroke by mouse through the middle."""
        self.centre(canvas := self.canvas())
        hand = ActionChains(self.chrome, duration=20).move_to_element(canvas)
        hand.move_by_offset(-60, -40).click_and_hold().move_by_offset(90, 30).release().perform()

    def pictures(self, title: str):
        """The loaded pictures whose download is titled so."""
        button = f"//*[@data-testid='stDownloadButton'][contains(., '{title}')]"
        found = self.all(f"{button}/preceding::img[1]")
        return [e for e in found if e.get_property("naturalWidth") > 0]

    def shot(self, part=None) -> PIL.Image.Image:
        """The screen, with `part` at its top; without one, the whole page."""
        if part is None:
            size = self.chrome.execute_script(
                "const { scrollHeight } = document.querySelector('[data-testid=stMain]');"
                "return { width: innerWidth, height: scrollHeight };"
            )
            size |= {"deviceScaleFactor": 1, "mobile": False}
            self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        else:
            self.chrome.execute_script("arguments[0].scrollIntoView({block: 'start'})", part)
        self.settle()
        content = io.BytesIO(self.chrome.get_screenshot_as_png())
        if part is None:
            self.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        return PIL.Image.open(content).convert("RGB")

    def settle(self) -> None:
        """Lets the page come to rest."""
        time.sleep(1)
        state = "//*[@data-test-script-state='notRunning']"
        self.wait(lambda: self.chrome.find_elements(By.XPATH, state))

    def upload(self, file: Path) -> None:
        self.chrome.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))

    def says(self, words: str) -> bool:
        return bool(self.all(f"//*[contains(text(), '{words}')]"))


@pytest.fixture
def page(chrome, address) -> Page:
    """A new session."""
    return Page(chrome, address)


def test_a_person_paints_a_hole_and_gets_several_fills(page):
    page.wait(lambda: page.button("Fill"))
    assert not page.button("Fill").is_enabled() and page.painted() == 0
    page.paint()
    assert page.painted() > 0.02
    page.press("Fill")
    page.wait(lambda: len(page.pictures("fill ")) == 4)
    for title in ("hole", "spread", "film"):
        page.wait(lambda title=title: len(page.pictures(title)) == 1)
    assert len(page.all("//*[@data-testid='stDownloadButton']")) == 7

    for tool in ("erase", "undo"):  # the second stroke is one of the eraser, and is taken back
        page.click(page.brush().find_element(By.NAME, tool))
        if tool == "erase":
            page.paint()
            assert page.painted() == 0
    assert page.painted() > 0.02
    page.click(page.brush().find_element(By.NAME, "clear"))
    page.wait(lambda: not page.button("Fill").is_enabled())
    assert page.painted() == 0


def test_bad_uploads_get_a_sentence_and_a_good_one_is_filled(page, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    page.upload(tmp_path / "text.png")
    page.wait(lambda: page.says("no picture of a known format"))
    PIL.Image.new("RGB", (90, 60), "teal").save(tmp_path / "mine.png")
    page.upload(tmp_path / "mine.png")
    page.wait(lambda: not page.says("no picture of a known format") and page.canvas().size["width"])
    page.wait(lambda: page.canvas().size["height"] * 1.4 < page.canvas().size["width"])
    page.paint()
    page.press("Fill")
    page.wait(lambda: len(page.pictures("fill ")) == 4)


def test_a_run_is_stopped_and_the_next_one_is_whole(page):
    page.wait(lambda: page.click(page.all("//label[contains(., 'CenterBox')]")[0]))
    page.wait(lambda: page.button("Another"))
    page.wait(lambda: page.click(page.all("//*[contains(text(), 'Beside it')]")[0]))
    page.choose("Solver, training-free", "d_flow")
    page.press("Fill")
    page.press("Stop")
    page.wait(lambda: page.says("The run was stopped"))
    page.choose("Solver, training-free", "replace")
    page.press("Fill")
    page.wait(lambda: len(page.pictures("fill ")) == 8)


def test_a_class_is_generated(page):
    page.wait(lambda: page.click(page.all("//*[@role='tab'][contains(., 'Generate')]")[0]))
    page.choose("Class", "3")
    page.press("Generate")
    page.wait(lambda: page.pictures("samples") and page.pictures("film"))


@pytest.fixture
def phone(chrome, address) -> Iterator[Page]:
    """A new session on a screen of a phone, which has fingers and no mouse."""
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield Page(chrome, address)
    chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def touch(page: Page, *points: tuple[float, float]) -> None:
    """A finger's way over the canvas, in widths of it."""
    page.centre(page.canvas())
    box = page.chrome.execute_script("return arguments[0].getBoundingClientRect()", page.canvas())
    kinds = ["touchStart"] + ["touchMove"] * (len(points) - 1)
    for kind, (x, y) in zip(kinds, points, strict=True):
        place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["width"]}
        page.chrome.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]}
        )
    page.chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_paints_on_a_phone_whose_page_is_not_wider_than_it(phone):
    touch(phone, (0.3, 0.3), (0.4, 0.5), (0.6, 0.7))
    assert phone.painted() > 0.02
    phone.press("Fill")
    phone.wait(lambda: len(phone.pictures("fill ")) == 4)
    inner = phone.chrome.execute_script(
        "return [document.querySelector('[data-testid=stMain]').scrollWidth, innerWidth]"
    )
    assert inner[0] <= inner[1] == PHONE["width"]


SHIPPED = sorted(shipped_names("fill"), key=lambda name: name != "portraits")  # those first


@pytest.mark.skipif(not SHIPPED, reason="needs a shipped model that fills")
@pytest.mark.parametrize("device", ["page", "phone"])
def test_pictures_of_the_docs(device, request, tmp_path):
    page = request.getfixturevalue(device)
    page.choose("Model", SHIPPED[0])
    page.settle()
    touch(page, (0.3, 0.45), (0.7, 0.45), (0.7, 0.52), (0.3, 0.52), (0.3, 0.59), (0.7, 0.59))
    page.press("Fill")
    page.wait(lambda: len(page.pictures("fill ")) == 4 and page.pictures("film"))
    page.settle()
    parts = [page.canvas(), page.pictures("hole")[0]] if device == "phone" else []
    shot = side_by_side([page.shot(part) for part in parts or [None]])
    shot.quantize(128).save(
        Path(os.environ.get("FM_EXT_SCREENSHOTS", tmp_path)) / f"app_{device}.png", optimize=True
    )


def side_by_side(shots: list[PIL.Image.Image]) -> PIL.Image.Image:
    gap = 24
    width = sum(shot.width for shot in shots) + gap * (len(shots) - 1)
    both = PIL.Image.new("RGB", (width, max(shot.height for shot in shots)), "grey")
    for i, shot in enumerate(shots):
        both.paste(shot, (i * (shot.width + gap), 0))
    return both


def test_nothing_was_written_beside_temporary_folders_and_no_script_failed(chrome, address, home):
    assert not [path for path in home.rglob("*") if path.is_file()]
    thrown = [entry for entry in chrome.get_log("browser") if entry["source"] == "javascript"]
    assert not thrown  # a picture of a page that was left, of the network's source, is none
