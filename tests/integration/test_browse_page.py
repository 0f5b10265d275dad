"""The browse page in a real headless Chromium, from disk and from its server, at two widths."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.browse.content import Content
from analysis.browse.export import export
from analysis.browse.server import BrowseServer
from analysis.counts.load import load_run
from tests.support.chromium import DESKTOP, PHONE, Browser, browser
from tests.support.report_data import MARKUP, full_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    folder = tmp_path_factory.mktemp("browse")
    return Content([load_run(full_run(folder / "run"), answers=False)], title="run")


@pytest.fixture(scope="module")
def folder(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(content, tmp_path_factory.mktemp("page"), title="run").page


def opened(page: Browser, address: str, hash_text: str) -> None:
    page.open(f"{address}{hash_text}")
    page.wait("document.body.dataset.ready")


def texts(page: Browser, selector: str) -> list[str]:
    found: list[str] = page.value(f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)")
    return found


def test_a_reader_filters_problems_and_reads_one_from_disk(page: Browser, folder: Path) -> None:
    page.show(DESKTOP)
    page.messages.clear()
    page.requests.clear()
    opened(page, folder.as_uri(), "#split=train")
    assert texts(page, "#rows .id") == ["t0", "t1"]
    assert texts(page, ".row .tag")[:2] == ["ada 0/2 → 1/2", "bob 2/2"]
    page.click('[data-filter="rescued"]')
    page.wait("location.hash.includes('filter=rescued')")
    page.click(".row:nth-of-type(2)")
    page.wait("document.querySelector('.models')")
    assert texts(page, "h2") == ["t1"]
    assert texts(page, ".model > h3") == ["ada", "bob"]
    shown = texts(page, ".card pre")
    for text in (f"cold ada t1 1 {MARKUP}", f"cold bob t1 0 {MARKUP}", f"rescue t1 2 {MARKUP}"):
        assert text in shown
    (hint,) = texts(page, ".card.hint pre")
    assert f"hint t1 {MARKUP}" in "".join(texts(page, ".hint pre > :not(del)"))
    assert "cold bob" in hint  # what the hint cut
    assert "with the hint: 1 of 2 correct" in texts(page, ".group")
    # Model output is text: it made no element, and nothing was loaded but the data files.
    assert page.value("document.querySelectorAll('#detail script, #detail img, #detail iframe').length") == 0
    requests = [address for address in page.requests if address != "about:blank"]
    assert len(requests) == 5  # the page, its index, a block, its problems, details
    assert all(address.startswith(folder.parent.as_uri()) for address in requests)
    assert page.messages == []


def test_the_policy_of_the_page_stops_a_script_in_its_text(page: Browser, folder: Path) -> None:
    opened(page, folder.as_uri(), "#split=train&problem=t0")
    page.value("document.querySelector('.card pre').innerHTML = '<img src=x onerror=\"window.broken = 1\">'")
    page.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.broken = 2';"
        " document.body.append(s); })()"
    )
    page.wait("true")
    assert page.value("window.broken") is None
    assert any("Content Security Policy" in message for message in page.messages)
    page.messages.clear()


def test_keys_and_links_move_between_problems(page: Browser, folder: Path) -> None:
    page.show(DESKTOP)
    opened(page, folder.as_uri(), "#split=evaluation&iteration=0&filter=all_fail")
    assert texts(page, "#rows .id") == []
    opened(page, folder.as_uri(), "#split=evaluation&iteration=0&filter=fails:ada")
    assert texts(page, "#rows .id") == ["p1"]
    opened(page, folder.as_uri(), "#split=evaluation&iteration=1&order=easiest&problem=p0")
    assert texts(page, "#rows .id") == ["p2", "p0", "p1"]  # 8, 4 and 4 of 8 completions are correct
    page.key("j")
    page.wait("document.querySelector('h2').textContent === 'p1'")
    page.key("k")
    page.wait("document.querySelector('h2').textContent === 'p0'")
    assert page.messages == []


def test_log_probabilities_without_a_tokenizer_are_strips_with_a_reason(page: Browser, folder: Path) -> None:
    page.show(DESKTOP)
    opened(page, folder.as_uri(), "#split=train&problem=t0")
    page.click("#colour")
    page.wait("document.querySelector('canvas')")
    assert all("no tokenizer.json" in text for text in texts(page, ".model .note"))
    colour = "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 1, 1).data]"
    assert page.value(colour)[3] == 255  # log-probability -0.5 is below the first bound


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_its_window(
    page: Browser, folder: Path, size: tuple[int, int], dark: bool, tmp_path: Path
) -> None:
    page.show(size, dark=dark)
    for hash_text in ("#split=train", "#split=train&problem=t0"):
        opened(page, folder.as_uri(), hash_text)
        assert page.value("document.documentElement.scrollWidth") <= size[0]
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000
    both = size == DESKTOP
    assert page.value("getComputedStyle(document.getElementById('list')).display !== 'none'") == both
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def test_the_server_gives_every_problem_and_reports_a_damaged_shard(
    page: Browser, tmp_path: Path, content: Content
) -> None:
    run = full_run(tmp_path / "run")
    page.show(DESKTOP)
    page.messages.clear()
    with BrowseServer(Content([load_run(run, answers=False)], title="run"), title="run") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened(page, server.address, "#split=train&problem=t1")
        assert f"rescue t1 2 {MARKUP}" in texts(page, ".card pre")
        assert page.messages == []
        shard = next((run / "cold" / "iteration=0001").glob("ada-p000.*.parquet"))
        shard.write_bytes(bytes(shard.stat().st_size))
        opened(page, server.address, "#split=train&problem=t0")
        page.wait("document.querySelector('#detail .note')")
        assert shard.name in texts(page, "#detail .note")[0]
        server.shutdown()


def test_an_incomplete_folder_is_explained(page: Browser, content: Content, tmp_path: Path) -> None:
    page.show(PHONE)
    export(content, tmp_path, title="run")
    (tmp_path / "data" / "b0-train-1.js").unlink()
    opened(page, (tmp_path / "index.html").as_uri(), "#split=train")
    assert "data/b0-train-1.js cannot be loaded" in texts(page, "#detail .note")[0]
    export(content, tmp_path, title="run", num_completions=1)
    opened(page, (tmp_path / "index.html").as_uri(), "#split=evaluation&iteration=0&problem=p0")
    page.wait("document.querySelector('#detail .note')")
    assert "This folder has no texts of this problem" in texts(page, "#detail .note")[0]
    page.messages.clear()
