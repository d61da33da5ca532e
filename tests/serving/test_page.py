"""serving/page/: the demo page in a browser, beside a stand-in of the REST API.

The docs' picture of it is taken by the last test; PAGE_URL is a server that runs
(without it the stand-in, which blurs), PAGE_FILE a picture (without it the sample):

    PAGE_PICTURE=docs/pictures/page.png PAGE_URL=http://127.0.0.1:8501 \\
        PAGE_FILE=photo.jpg python -m pytest tests/serving/test_page.py -k screenshot
"""

import base64
import http.server
import io
import json
import os
import re
import shutil
import threading

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mae_server.process import running
from tests.http_server import Server
from tests.pictures import encode
from tests.scripts import ROOT, environment

sync_api = pytest.importorskip("playwright.sync_api")
CHROME = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROME is None, reason="no chromium or chrome on PATH"),
]

PAGE = ROOT / "serving/page"
POLICY = "default-src 'self'; img-src 'self' blob: data:"


class StandIn(Server):
    """The page's files, and a model that answers with a blurred picture."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reset()

    def reset(self, shape=(32, 48, 3), patch=(8, 8)):
        self.shape, self.patch = shape, patch
        self.signature = "reconstruct_with_mask"
        self.error = None
        self.requests = []
        self.answer = None
        self.at_once = self.most_at_once = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def metadata(self):
        height, width, _ = self.shape
        patches = height * width // np.prod(self.patch)
        signature = {
            "inputs": {"image_bytes": tensor(), "mask": tensor(patches)},
            "outputs": {"reconstruction": tensor(*self.shape), "loss": tensor()},
        }
        signatures = {"signature_def": {self.signature: signature}}
        return {"model_spec": {}, "metadata": {"signature_def": signatures}}

    def predict(self, body):
        (instance,) = body["instances"]
        self.requests.append(instance)
        if self.error:
            return {"error": self.error}
        content = base64.b64decode(instance["image_bytes"]["b64"], validate=True)
        height, width, channels = self.shape
        image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
        image = image.resize((width, height))
        image = image.filter(ImageFilter.GaussianBlur(width / 50))
        pixels = np.asarray(image, "float32").reshape(self.shape)
        self.answer = {
            "reconstruction": (0.9 * pixels + 12.3).tolist(),
            "mask": list(map(float, instance["mask"])),
            "loss": 0.123456,
            "patch_size": self.patch,
        }
        return {"predictions": [self.answer]}


def tensor(*sizes):
    dims = [{"size": str(size), "name": ""} for size in (-1, *sizes)]
    return {"tensor_shape": {"dim": dims, "unknown_rank": False}}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers for a `StandIn`."""

    def __init__(self, *arguments):
        super().__init__(*arguments, directory=PAGE)

    def log_message(self, *_):
        pass

    def end_headers(self):
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def do_GET(self):
        if self.path == "/v1/models/mae/metadata":
            self.send(200, self.server.metadata())
        elif self.path.startswith("/v1/"):
            self.send(404, {"error": f"Servable not found for request: {self.path}"})
        else:
            super().do_GET()

    def do_POST(self):
        assert self.path == "/v1/models/mae:predict"
        server = self.server
        server.at_once += 1
        server.most_at_once = max(server.most_at_once, server.at_once)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["signature_name"] == "reconstruct_with_mask"
        answer = server.predict(body)
        server.may_answer.wait(300)
        server.at_once -= 1
        self.send(400 if "error" in answer else 200, answer)

    def send(self, status, document):
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def stand_in():
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(stand_in):
    stand_in.reset()
    return stand_in


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROME, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that may neither log an error nor ask another host."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.errors, page.hosts = [], set()
    page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda r: page.hosts.add(re.match(r"\w+:(//[^/:]+)?", r.url)[0]))
    yield page
    context.close()
    assert page.errors == []
    assert page.hosts <= {"http://127.0.0.1", "data:", "blob:"}


def answered(page, action):
    """Acts, and waits until the page shows the answer to what that asked."""
    with page.expect_response(lambda response: response.url.endswith(":predict")):
        action()
    wait_for_status(page, "Loss")


def wait_for_status(page, text):
    found = page.locator("#status").filter(has_text=text)
    found.wait_for()
    return found.inner_text()


def show(page, server):
    answered(page, lambda: page.goto(server.url))


def pixels(page, canvas):
    """Reads a canvas: (height, width, RGBA)."""
    values = page.evaluate(
        """id => { const it = document.getElementById(id);
        const data = it.getContext("2d").getImageData(0, 0, it.width, it.height).data;
        return [it.height, it.width, Array.from(data)]; }""",
        canvas,
    )
    return np.reshape(values[2], (values[0], values[1], 4))


def picture(ending="png", size=(96, 64), **options):
    """Encodes a picture with a red left and a blue right half."""
    image = Image.new("RGB", size, (200, 30, 40))
    image.paste((20, 60, 220), (size[0] // 2, 0, *size))
    return encode(image, ending, **options)


def choose(page, content, name="a.png", kind="image/png"):
    file = {"name": name, "mimeType": kind, "buffer": content}
    page.get_by_label("Drop a picture").set_input_files(file)


def sent(server):
    """Returns the bytes of the picture that was sent last."""
    return base64.b64decode(server.requests[-1]["image_bytes"]["b64"])


def patch_means(page):
    """Returns the masked canvas's colours, a row a patch, away from the grid."""
    image = pixels(page, "masked")[..., :3]
    height, width, _ = image.shape
    grid = image.reshape(4, height // 4, 6, width // 6, 3)
    return grid[:, 9:-9, :, 9:-9].mean((1, 3)).reshape(24, 3)


def test_starts_with_a_sample_and_shows_the_reconstruction(page, server):
    show(page, server)
    assert "0.123" in page.locator("#status").inner_text()
    assert page.title() == "Masked autoencoder"
    (request,) = server.requests
    assert len(request["mask"]) == 24 and sum(request["mask"]) == 18
    assert page.locator("#removed").inner_text() == "18 of 24 patches"
    reconstruction = np.array(server.answer["reconstruction"])
    shown = pixels(page, "reconstruction")
    np.testing.assert_allclose(shown[..., :3], reconstruction, atol=0.51)
    assert (shown[..., 3] == 255).all()


def test_pasted_takes_visible_patches_from_the_picture(page, server):
    show(page, server)
    answered(page, lambda: choose(page, picture()))
    mask = np.array(server.answer["mask"]).reshape(4, 6).repeat(8, 0).repeat(8, 1)
    pasted = pixels(page, "pasted")[..., :3]
    reconstruction = pixels(page, "reconstruction")[..., :3]
    np.testing.assert_array_equal(pasted[mask == 1], reconstruction[mask == 1])
    # away from the middle, where resizing blends the halves
    columns = np.arange(48)
    visible = (mask == 0) & ((columns < 20) | (columns >= 28))
    wanted = np.where(columns[:, None] < 24, (200, 30, 40), (20, 60, 220))
    wanted = np.broadcast_to(wanted, pasted.shape)
    np.testing.assert_allclose(pasted[visible], wanted[visible], atol=2)


@pytest.mark.nightly
def test_patches_need_not_be_squares(page, server):
    server.reset((32, 32, 3), patch=(16, 4))  # as many as of 8x8
    show(page, server)
    answered(page, lambda: choose(page, picture()))
    mask = np.reshape(server.answer["mask"], (2, 8)) == 1
    masked = pixels(page, "masked")[..., :3].reshape(2, 224, 8, 56, 3)
    grey = (masked[:, 9:-9, :, 9:-9] == 128).all(axis=(1, 3, 4))
    np.testing.assert_array_equal(grey, mask)
    pasted, painted = (
        pixels(page, canvas).reshape(2, 16, 8, 4, 4)
        for canvas in ("pasted", "reconstruction")
    )
    same = (pasted == painted).all(axis=(1, 3, 4))
    np.testing.assert_array_equal(same, mask)
    # a stroke finds the patch under it
    before = np.array(server.requests[-1]["mask"])
    box = page.locator("#masked").bounding_box()
    place = {"x": box["width"] * 2.5 / 8, "y": box["height"] * 0.45}
    answered(page, lambda: page.locator("#masked").click(position=place))
    after = np.array(server.requests[-1]["mask"])
    assert np.flatnonzero(before != after).tolist() == [2]


@pytest.mark.parametrize(
    "ending, kind, as_is",
    [
        ("png", "image/png", True),
        ("jpg", "image/jpeg", True),
        ("webp", "image/webp", True),
        ("bmp", "image/bmp", True),
        ("gif", "image/gif", False),
    ],
)
def test_formats_the_server_decodes_are_sent_unchanged(
    page, server, ending, kind, as_is
):
    show(page, server)
    content = picture(ending)
    answered(page, lambda: choose(page, content, f"a.{ending}", kind))
    assert (sent(server) == content) == as_is
    assert Image.open(io.BytesIO(sent(server))).size == (96, 64)
    assert as_is or sent(server).startswith(b"\x89PNG")


@pytest.mark.parametrize("endian", ["<", ">"])
def test_picture_with_exif_orientation_is_sent_upright(page, server, endian):
    show(page, server)
    exif = Image.Exif()
    exif.endian = endian
    exif[0x0112] = 6  # to be turned by 90 degrees: red is above, blue below
    content = picture("jpg", exif=exif)
    answered(page, lambda: choose(page, content, "a.jpg", "image/jpeg"))
    image = Image.open(io.BytesIO(sent(server)))
    assert image.format == "PNG" and image.size == (64, 96)
    assert image.getpixel((60, 5))[0] > 150 and image.getpixel((5, 90))[2] > 150


def test_large_reencoded_picture_is_sent_smaller(page, server):
    show(page, server)
    content = picture("gif", size=(3000, 1500))
    answered(page, lambda: choose(page, content, "a.gif", "image/gif"))
    assert Image.open(io.BytesIO(sent(server))).size == (1024, 512)


@pytest.mark.nightly
def test_a_file_can_be_dropped(page, server):
    show(page, server)
    content = picture()
    transfer = page.evaluate_handle(
        """bytes => { const transfer = new DataTransfer();
        const file = new File([new Uint8Array(bytes)], "a.png", {type: "image/png"});
        transfer.items.add(file); return transfer; }""",
        list(content),
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    assert "over" in page.locator("#drop").get_attribute("class")
    drop = {"dataTransfer": transfer}
    answered(page, lambda: page.dispatch_event("#drop", "drop", drop))
    assert "over" not in page.locator("#drop").get_attribute("class")
    assert sent(server) == content
    # the masked canvas shows it too: grey where patches are removed
    colours = patch_means(page)
    for patch, removed in enumerate(server.requests[-1]["mask"]):
        wanted = (200, 30, 40) if patch % 6 < 3 else (20, 60, 220)
        wanted = (128, 128, 128) if removed else wanted
        np.testing.assert_allclose(colours[patch], wanted, atol=2)


def test_slider_sets_the_number_of_masked_patches(page, server):
    show(page, server)
    slider = page.get_by_label("Mask ratio")
    removed = []
    for ratio in ("0.05", "0.5", "0.95"):
        answered(page, lambda ratio=ratio: slider.fill(ratio))
        removed.append({i for i, it in enumerate(server.requests[-1]["mask"]) if it})
    assert list(map(len, removed)) == [1, 12, 23]
    assert removed[0] < removed[1] < removed[2]
    # by keyboard, too: 0.94 of 24
    slider.focus()
    answered(page, lambda: page.keyboard.press("ArrowLeft"))
    answered(page, lambda: page.keyboard.press("Home"))
    assert sum(server.requests[-1]["mask"]) == 1


def test_button_draws_a_new_mask(page, server):
    show(page, server)
    masks = {tuple(server.requests[-1]["mask"])}
    button = page.get_by_role("button", name="New mask")
    for _ in range(3):
        answered(page, button.click)
        masks.add(tuple(server.requests[-1]["mask"]))
    assert len(masks) > 1 and {sum(mask) for mask in masks} == {18}
    picture_before = sent(server)
    answered(page, lambda: choose(page, picture()))
    answered(page, page.get_by_role("button", name="Sample picture").click)
    assert sent(server) == picture_before


def test_stroke_masks_or_unmasks_patches(page, server):
    show(page, server)
    before = np.array(server.requests[-1]["mask"])
    box = page.locator("#masked").bounding_box()

    def point(patch):
        x = box["x"] + (patch % 6 + 0.5) * box["width"] / 6
        return x, box["y"] + (patch // 6 + 0.5) * box["height"] / 4

    answered(page, lambda: page.mouse.click(*point(7)))
    after = np.array(server.requests[-1]["mask"])
    assert np.flatnonzero(before != after).tolist() == [7]
    count = f"{after.sum()} of 24 patches"
    assert page.locator("#removed").inner_text() == count

    page.mouse.move(*point(12))
    page.mouse.down()
    page.mouse.move(*point(17), steps=20)
    page.mouse.up()
    wait_for_status(page, "Loss")
    page.mouse.move(*point(20))  # the button is up: nothing happens
    final = np.array(server.requests[-1]["mask"])
    assert (final[12:18] == 1 - after[12]).all()
    np.testing.assert_array_equal(final[:12], after[:12])
    np.testing.assert_array_equal(final[18:], after[18:])


def test_patches_are_flipped_by_keyboard(page, server):
    show(page, server)
    before = np.array(server.requests[-1]["mask"])
    page.locator("#masked").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    assert "row 1, column 2" in page.locator("#status").inner_text()
    answered(page, lambda: page.keyboard.press(" "))
    after = np.array(server.requests[-1]["mask"])
    assert np.flatnonzero(before != after).tolist() == [1]


def test_mask_must_have_masked_and_visible_patches(page, server):
    show(page, server)
    answered(page, lambda: page.get_by_label("Mask ratio").fill("0.05"))
    patch = server.requests[-1]["mask"].index(1)
    box = page.locator("#masked").bounding_box()
    x, y = (patch % 6 + 0.5) * box["width"] / 6, (patch // 6 + 0.5) * box["height"] / 4
    asked = len(server.requests)
    page.mouse.click(box["x"] + x, box["y"] + y)
    assert "at least one patch" in page.locator("#status").inner_text()
    assert len(server.requests) == asked
    answered(page, lambda: page.mouse.click(box["x"] + x, box["y"] + y))


def test_requests_never_overlap_and_the_latest_wins(page, server):
    show(page, server)
    server.may_answer.clear()
    slider = page.get_by_label("Mask ratio")
    with page.expect_request("**/*:predict"):
        slider.fill("0.5")
    for ratio in ("0.25", "0.3", "0.35", "0.9"):
        slider.fill(ratio)
    assert page.locator("#status").inner_text() == "Waiting for the model…"
    assert "stale" in page.locator("#pictures").get_attribute("class")
    server.may_answer.set()
    wait_for_status(page, "Loss")
    assert [sum(request["mask"]) for request in server.requests] == [18, 12, 22]
    assert server.most_at_once == 1
    assert page.locator("#pictures").get_attribute("class") == ""


def test_server_error_is_shown_until_the_next_response(page, server):
    show(page, server)
    server.error = "<b>mask</b> must hold only 0 and 1"
    button = page.get_by_role("button", name="New mask")
    button.click()
    text = wait_for_status(page, "must hold only")
    assert text == "The server says (400): <b>mask</b> must hold only 0 and 1"
    assert "stale" in page.locator("#pictures").get_attribute("class")
    assert all("400" in error for error in page.errors)  # the browser's own line
    page.errors.clear()
    server.error = None
    answered(page, button.click)
    assert not page.locator("#status.error").count()


def test_unreachable_server_is_reported(page, server):
    show(page, server)
    page.route("**/*:predict", lambda route: route.abort())
    page.get_by_role("button", name="New mask").click()
    wait_for_status(page, "The server does not answer.")
    page.errors.clear()


def test_unknown_model_is_reported(page, server):
    page.goto(f"{server.url}/?model=other%2Fone")
    text = wait_for_status(page, "not found")
    assert "/v1/models/other%2Fone/metadata" in text and "404" in text
    page.errors.clear()


def test_model_without_reconstruction_is_reported(page, server):
    server.signature = "classify"
    page.goto(server.url)
    wait_for_status(page, '"mae" has no signature reconstruct_with_mask')


def test_invalid_picture_file_is_reported(page, server):
    show(page, server)
    choose(page, b"text")
    wait_for_status(page, "can't read this file")
    answered(page, lambda: choose(page, picture()))


@pytest.mark.nightly
def test_grayscale_model(page, server):
    server.reset(shape=(28, 28, 1), patch=(4, 4))
    show(page, server)
    assert len(server.requests[-1]["mask"]) == 49
    answered(page, lambda: choose(page, picture()))
    for canvas in ("masked", "reconstruction", "pasted"):
        image = pixels(page, canvas)
        assert (image[..., 0] == image[..., 1]).all()
        assert (image[..., 0] == image[..., 2]).all()
    reconstruction = np.array(server.answer["reconstruction"])
    shown = pixels(page, "reconstruction")[..., :1]
    np.testing.assert_allclose(shown, reconstruction, atol=0.51)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser, server, scheme):
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, color_scheme=scheme
    )
    page = context.new_page()
    show(page, server)
    assert page.evaluate("document.scrollingElement.scrollWidth") == 360
    before = np.array(server.requests[-1]["mask"])
    masked = page.locator("#masked")
    answered(page, lambda: masked.tap(position={"x": 10, "y": 10}))
    after = np.array(server.requests[-1]["mask"])
    assert np.flatnonzero(before != after).tolist() == [0]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (np.mean(list(map(int, re.findall(r"\d+", ground)))) > 128) == (
        scheme == "light"
    )
    context.close()


def test_page_is_small_and_self_contained():
    files = sorted(path.name for path in PAGE.iterdir())
    assert files == ["index.html", "page.css", "page.js"]
    texts = {name: (PAGE / name).read_text() for name in files}
    assert sum(text.count("\n") for text in texts.values()) < 430
    assert POLICY in texts["index.html"]
    assert not re.search(r"\son\w+=|<style|style=", texts["index.html"])
    assert not any("//" in re.sub(r"(?m)//( .*)?$", "", t) for t in texts.values())


def test_embedded_server_serves_the_page(page, served_mae):
    flags = ("--model_name=mae", f"--model_base_path={served_mae}")
    script = ROOT / "serving/local_server.py"
    with running(script, *flags, env=environment()) as (rest, _, server):
        answered(page, lambda: page.goto(f"http://{rest}"))
        with page.expect_response("**/*:predict") as response:
            choose(page, picture())
        (row,) = response.value.json()["predictions"]
        wait_for_status(page, "Loss")
        shown = pixels(page, "reconstruction")[..., :3]
        np.testing.assert_allclose(shown, row["reconstruction"], atol=0.51)
        assert sum(row["mask"]) == 12
    assert server.returncode == 0


def test_screenshot(browser, stand_in, tmp_path):
    stand_in.reset((224, 224, 3), (16, 16))
    context = browser.new_context(
        viewport={"width": 960, "height": 690}, device_scale_factor=1.5
    )
    page = context.new_page()
    answered(page, lambda: page.goto(os.environ.get("PAGE_URL", stand_in.url)))
    if path := os.environ.get("PAGE_FILE"):
        label = page.get_by_label("Drop a picture")
        answered(page, lambda: label.set_input_files(path))
    path = os.environ.get("PAGE_PICTURE", tmp_path / "page.png")
    page.wait_for_timeout(500)  # for the fading to end
    page.screenshot(path=path, full_page=True)
    context.close()
    with Image.open(path) as image:
        assert image.width == 1440
