"""The report in a browser: it draws, loads nothing, and the map shows, finds and names images."""

import re
import shutil

import numpy as np
import pytest

from moco_jax.pages import document, writing
from moco_jax.pages.space import SIDE, Encoded
from moco_jax.pretraining import pretrain
from tests.tiny import tiny_config

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")

SIZES = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a short run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = tiny_config(steps=4, knn__every_epochs=0.02, health__images=64, data__image_size=16)
    config.data.eval_resize = 16
    pretrain.pretrain(config, folder)
    writing.write([folder], folder / "report.html", images=200)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, report, request):
    """The page, and what it asked of the network and wrote to the console."""
    width, height = request.param[0]
    view = {"width": width, "height": height}
    context = browser.new_context(viewport=view, color_scheme=request.param[1])
    page, seen = context.new_page(), []
    page.on("request", lambda r: seen.append(r.url) if r.url.startswith("http") else None)
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("console", lambda m: seen.append(m.text) if m.type in ("error", "warning") else None)
    page.goto(report.as_uri())
    for _ in range(600):
        if page.evaluate("window.drawn || 0"):
            break
        page.wait_for_timeout(50)
    yield page, seen
    context.close()


each = pytest.mark.parametrize(
    "opened", [(size, scheme) for size in SIZES for scheme in ("light", "dark")], indirect=True
)
wide = pytest.mark.parametrize("opened", [(SIZES[0], "light")], indirect=True)


@each
def test_it_draws_everything_and_asks_for_nothing(opened):
    page, seen = opened
    assert seen == []
    drawn = page.evaluate("window.drawn")
    assert drawn == len(page.evaluate("Object.keys(items)")) > 8
    assert page.locator(".plot canvas, .map canvas").count() >= drawn
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@each
def test_a_point_under_the_pointer_shows_its_image_and_its_name(opened):
    page, _ = opened
    page.locator("#plot-space").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    at = page.evaluate(
        """() => { const box = map.canvas_view.el.getBoundingClientRect(), i = 17;
        return [box.left + map.frame.x_scale.compute(points.data.x[i]),
                box.top + map.frame.y_scale.compute(points.data.y[i])]; }"""
    )
    page.mouse.move(*at)
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    i = page.evaluate("points.inspected.indices[0]")
    assert tip.inner_text().strip() == page.evaluate(f"describe({i})")
    box, width = tip.bounding_box(), page.viewport_size["width"]
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    columns, side = page.evaluate("[space.columns, space.side]")
    place = page.evaluate("document.querySelector('#tip .small').style.backgroundPosition")
    assert place == f"-{i % columns * side}px -{i // columns * side}px".replace("-0px", "0px")


@wide
def test_the_search_finds_and_marks_images_and_the_list_turns_its_pages(opened):
    page, _ = opened
    name = page.evaluate("space.names[23]")
    page.fill("#search", name.upper())
    found = page.evaluate("points.selected.indices")
    assert 23 in found and all(name in page.evaluate(f"describe({i})") for i in found)
    assert page.inner_text("#found") == f"{len(found)} found"
    page.fill("#search", "there is no such image")
    assert page.inner_text("#range") == "none" and page.locator("#images li").count() == 0
    page.fill("#search", "")
    assert page.inner_text("#range") == "1 to 24 of 200"
    page.click("#next")
    assert page.inner_text("#range") == "25 to 48 of 200"
    page.locator("#images button").first.focus()
    assert page.evaluate("points.selected.indices") == [24]


@wide
def test_colours_follow_the_group(opened):
    page, _ = opened
    before = page.evaluate("points.data.color.join()")
    page.select_option("#by", "cluster")
    assert page.evaluate("points.data.color.join()") != before
    assert page.locator("#map-legend li").count() <= 10


@wide
def test_neighbours_and_plots_have_a_text(opened):
    page, _ = opened
    names = [tile.get_attribute("aria-label") for tile in page.locator(".large").all()]
    assert len(names) >= 8 * 7 and all(re.match(r"digits/test/\d+, \d", name) for name in names)
    assert all(plot.get_attribute("aria-label") for plot in page.locator(".plot").all())


def test_many_images_are_shown(browser, tmp_path):
    random = np.random.default_rng(0)
    count = 9000  # noise: the sheet of the thumbnails has more than 2 MB
    encoded = Encoded(
        random.normal(size=(count, 16)).astype(np.float32),
        random.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        [str(i) for i in range(count)],
        None,
        (),
        "noise",
    )
    (tmp_path / "many.html").write_text(document.features_page(encoded, "many"))
    assert 4e6 < (tmp_path / "many.html").stat().st_size < 1e7
    page = browser.new_page()
    page.goto((tmp_path / "many.html").as_uri())
    for kind in ("small", "large"):
        image = f"getComputedStyle(document.querySelector('.{kind}')).backgroundImage.slice(0, 15)"
        assert page.evaluate(image) == 'url("data:image'
    page.close()
