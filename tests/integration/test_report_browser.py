"""The report in a real browser: what a reader sees, clicks and prints, and what hostile names do not do."""

from __future__ import annotations

import pytest

from medvl_evaluation.page import page as report_page
from medvl_evaluation.page import write_report
from tests.browser import n_pages, opened
from tests.evaluation import report_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    made = report_folder.make(tmp_path_factory.mktemp("browser") / "eval", reports=True)
    return write_report(made, show_text=True)


def _column(page, column):
    return page.locator(f"#labels tbody tr > :nth-child({column})").all_inner_texts()


def test_page_shows_everything_without_a_network_or_a_complaint(report):
    with opened(report) as (page, noticed):
        for key in ("comparison", "data", "labels", "curves", "calibration", "map", "gallery", "failures", "reproduce"):
            assert page.locator(f"#{key} h2").is_visible(), key
        assert page.locator("text=Research use only").is_visible()
        images = page.locator("img:visible")
        assert images.count() > 15
        assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0 && one.alt)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert noticed == []
    assert report.stat().st_size < report_page.MOST_BYTES


def test_hostile_names_and_texts_are_only_text(report):
    with opened(report) as (page, noticed):
        page.locator("#labels tbody tr").nth(2).hover()
        assert page.evaluate("window.hacked") is None
        assert page.locator(f"#labels th:text-is('{report_folder.SCRIPT}')").count() == 1
        assert page.locator(".report-text").first.inner_text().startswith("Canary report <script>")
        assert page.locator("script").count() == 1
        assert page.locator("#gallery img[src=x]").count() == 0
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = true\">')")
        page.wait_for_timeout(50)
        assert page.evaluate("window.hacked") is None, "the page's policy runs no script but its own"
        assert noticed != []


def test_columns_sort_both_ways_and_what_is_not_defined_stays_last(report):
    with opened(report) as (page, noticed):
        before = _column(page, 1)
        page.click("#labels th:has-text('AUROC') button")
        falling = _column(page, 6)
        assert falling[-1] == "–"
        assert [text[:4] for text in falling[:-1]] == sorted((text[:4] for text in falling[:-1]), reverse=True)
        page.click("#labels th:has-text('AUROC') button")
        rising = _column(page, 6)
        assert rising[-1] == "–"
        assert rising[:-1] == falling[-2::-1]
        assert page.locator("#labels th[aria-sort=ascending]").inner_text().startswith("AUROC")
        page.click("#labels th:has-text('finding') button")
        assert _column(page, 1) == sorted(before, key=str.lower)
        assert noticed == []


def test_print_of_a_small_evaluation_is_two_pages(tmp_path):
    with opened(write_report(report_folder.make(tmp_path))) as (page, _):
        assert n_pages(page.pdf(prefer_css_page_size=True)) <= 2
