"""The report in a real headless Chromium: where its figures stand, from a phone to a wide screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from analysis.counts.load import load_run
from analysis.report.report import write_report
from tests.support.chromium import DESKTOP, PHONE, Browser, browser
from tests.support.report_data import full_run

pytestmark = pytest.mark.slow

WIDE = (1600, 900)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("report")
    report = write_report(load_run(full_run(folder / "run")), folder / "out")
    with browser() as started:
        started.open(report.as_uri())
        yield started


def boxes(page: Browser, selector: str) -> list[dict[str, float]]:
    """The rectangles of elements, in pixels."""
    found: list[dict[str, Any]] = page.value(
        f"[...document.querySelectorAll('{selector}')].map((e) => e.getBoundingClientRect().toJSON())"
    )
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [PHONE, DESKTOP, WIDE])
def test_no_page_is_wider_than_its_window(page: Browser, size: tuple[int, int], dark: bool) -> None:
    page.show(size, dark=dark)
    assert page.value("document.documentElement.scrollWidth") == size[0]
    back = page.value("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is not dark
    assert page.value("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.messages == []


@pytest.mark.parametrize(("size", "least_width"), [(DESKTOP, 500), (WIDE, 600)])
def test_two_figures_of_a_section_are_beside_each_other(page: Browser, size: tuple[int, int], least_width: int) -> None:
    page.show(size)
    first, second = boxes(page, "#training figure img")
    assert first["top"] == second["top"]
    assert first["right"] < second["left"]
    assert first["width"] == second["width"] >= least_width


def test_the_text_of_a_single_figure_is_beside_it_on_a_wide_screen(page: Browser) -> None:
    page.show(WIDE)
    (image,), (caption,) = boxes(page, "#rescue figure img"), boxes(page, "#rescue figcaption")
    assert image["right"] < caption["left"]
    assert image["top"] == caption["top"]
    page.show(DESKTOP)
    (image,), (caption,) = boxes(page, "#rescue figure img"), boxes(page, "#rescue figcaption")
    assert image["bottom"] <= caption["top"]


def test_figures_are_below_each_other_on_a_phone(page: Browser) -> None:
    page.show(PHONE)
    first, second = boxes(page, "#training figure img")
    assert first["left"] == second["left"]
    assert first["bottom"] < second["top"]
    assert first["width"] == second["width"] > 0.9 * PHONE[0]
