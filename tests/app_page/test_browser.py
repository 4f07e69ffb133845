"""The page in a headless Chromium: from a dropped image to a saved line, a folder, the cases; answers are scripted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sam4mllm.data.reading import read_dataset
from tests.app_page.served import Served, browser, served
from tests.data.tiny_datasets import write_image
from tests.export.answers import write_predictions

pytest.importorskip("gradio")

TOAST = "[data-testid=toast-text]"


class Page:
    """Finds and uses the elements of the page by CSS selectors; waits until they are there."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address)

    def wait(self, found: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if value := found():
                return value
            time.sleep(0.05)
        raise AssertionError(
            f"{what}: not found; the page is:\n{self.driver.find_element('css selector', 'body').text}"
        )

    def shown(self, selector: str, text: str = "") -> Any:
        """The first displayed element whose text or value contains `text`."""
        from selenium.common.exceptions import StaleElementReferenceException

        def found() -> Any:
            try:
                elements = self.driver.find_elements("css selector", selector)
                shown = (each for each in elements if each.is_displayed())
                return next((each for each in shown if text in (each.text or each.get_attribute("value") or "")), None)
            except StaleElementReferenceException:
                return None

        return self.wait(found, f"{selector} {text!r}")

    def click(self, selector: str, text: str = "") -> None:
        element = self.shown(selector, text)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def type(self, selector: str, text: str) -> None:
        element = self.shown(selector)
        element.clear()
        element.send_keys(text)

    def upload(self, image: Path) -> None:
        found = self.wait(
            lambda: self.driver.find_elements("css selector", "#image input[type=file]"), "the input of the image"
        )
        found[0].send_keys(str(image))
        self.shown("#image img")

    def click_drawing(self, x: float, y: float) -> None:
        """Click on the corrected drawing, at shares of its width and height."""
        from selenium.webdriver import ActionChains

        image = self.shown("#corrected img")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
        # The drawing fills the element's height, and is centered in its width.
        box = image.size
        width = min(box["width"], box["height"] * 2)
        height = width / 2
        offset = (x - 0.5) * width, (y - 0.5) * height
        ActionChains(self.driver).move_to_element_with_offset(image, *map(round, offset)).click().perform()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    write_image(folder / "root/photos/a.png")
    write_image(folder / "root/photos/b.png")
    evaluation = folder / "run/evaluate/refcoco-val"
    evaluation.mkdir(parents=True)
    shutil.copy(write_predictions(folder / "answers"), evaluation)
    write_image(evaluation / "cases/images/worst-00.png")
    with served(folder) as each:
        yield each


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_an_answer_is_corrected_by_clicks_and_saved(site: Served, driver: Any, tmp_path: Path) -> None:
    page = Page(driver, site.address)
    page.upload(write_image(tmp_path / "street.png"))
    page.type("#phrases textarea", "left\ndragon")
    page.click("#boxes-alone input")
    page.click("#all-runs input")
    page.click("#segment")
    for title in ("mine", "mine, boxes alone", "other"):
        page.shown(".legend", f"{title}, ")
    page.shown(".objects", "[100,100,399,499] +(200,200)(300,300) -(900,900)")
    page.shown("#corrected-legend", "1 left")
    page.click("#save")
    page.shown("#saved textarea", "left; objects: 1; lines of the data set: 1")

    # The second phrase was answered by "no object"; a click adds one.
    page.click("#phrase input")
    page.click("[role=option]", "dragon")
    page.shown("#corrected-legend", "no object")
    page.click_drawing(0.5, 0.5)
    page.shown("#corrected-legend", "1 dragon")
    page.click("#undo")
    page.shown("#corrected-legend", "1 dragon: click on it")
    page.click_drawing(0.25, 0.5)
    page.type("#name input, #name textarea", "../<b>street")
    page.click("#save")
    page.shown(TOAST, "'../<b>street' is not a valid name of an image")
    page.type("#name input, #name textarea", "street")
    page.click("#save")
    page.shown("#saved textarea", "street.png, dragon; objects: 1; lines of the data set: 2")

    left, dragon = read_dataset("jsonl", path=site.data)
    assert left.objects[0].box == (2, 1, 8, 5) and dragon.image == site.data.parent / "images/street.png"
    # 2 pixels around the click at (5, 5), which may be off by a pixel of the page.
    box = dragon.objects[0].box
    assert abs(box.x1 - 3) <= 1 and abs(box.x2 - 7) <= 1 and abs(box.y1 - 3) <= 1 and abs(box.y2 - 7) <= 1


def test_errors_are_shown(site: Served, driver: Any, tmp_path: Path) -> None:
    page = Page(driver, site.address)
    page.click("#segment")
    page.shown(TOAST, "there is no image; drop or paste one")
    page.upload(write_image(tmp_path / "a.png"))
    page.click("#segment")
    page.shown(TOAST, "there is no phrase; type one per line")


def test_a_folder_is_answered_and_downloaded(site: Served, driver: Any) -> None:
    page = Page(driver, site.address)
    page.click("button[role=tab]", "Folder")
    page.type("#folder-phrases textarea", "left")
    page.click("#folder-start")
    page.shown("#folder-answers textarea", "2 masks of 2 phrases")
    link = page.shown("#folder-coco a").get_attribute("href")
    fetch = "const done = arguments[1]; fetch(arguments[0]).then(r => r.text()).then(done)"
    coco = json.loads(driver.execute_async_script(fetch, link))
    assert [image["file_name"] for image in coco["images"]] == ["photos/a.png", "photos/b.png"]


def test_evaluations_are_browsed(site: Served, driver: Any) -> None:
    page = Page(driver, site.address)
    page.click("button[role=tab]", "Cases")
    page.shown("#drawings", "worst 1")
    page.type("#contains textarea, #contains input", "parts")
    page.wait(lambda: "dragon" not in page.shown("#answers").text, "the filtered answers")
    page.click("#answers [role=gridcell]", "3")
    page.shown("#case img")
    page.shown("#case-text textarea", "two parts: é: ok")


def test_the_page_loads_nothing_from_other_hosts(site: Served, driver: Any) -> None:
    driver.get_log("performance")
    Page(driver, site.address).shown("#segment")
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert addresses and not [each for each in addresses if not each.startswith((site.address, "data:", "blob:"))]
