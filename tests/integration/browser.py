"""Opens a report in headless Chromium, cut off from everything but the file itself, and says what was seen."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to open the report in")

LOOKS = (("phone", 400, "dark"), ("desk", 1600, "light"))
"""Size, its width in pixels, and the colour scheme that a page begins with; it ends with the other one."""

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
DRAWN = "document.documentElement.dataset.drawn !== undefined"
NOT_DRAWN = """[...document.querySelectorAll('.chart')].filter(plot => {
    const lines = plot.querySelectorAll('.main-svg .trace path, .main-svg .points path');
    return plot.clientWidth < 200 || ![...lines].some(path => path.getAttribute('d'));
}).map(plot => plot.dataset.figure)"""
CUT_OFF = """[...document.querySelectorAll('.chart')].filter(plot => {
    const box = plot.getBoundingClientRect();
    return [...plot.querySelectorAll('.xtick text, .ytick text, .xtitle, .ytitle')].some(text => {
        const place = text.getBoundingClientRect();
        return place.left < box.left - 2 || place.right > box.right + 2;
    });
}).map(plot => plot.dataset.figure)"""
UNDER_LEGEND = """[...document.querySelectorAll('.chart')].filter(plot => {
    const legend = plot.querySelector('.legend'), area = plot.getBoundingClientRect();
    return legend !== null && legend.getBoundingClientRect().bottom > area.top + plot._fullLayout._size.t + 4;
}).map(plot => plot.dataset.figure)"""
TOOLTIP_GAP = """(() => {
    const tip = document.getElementById('tooltip'), token = document.querySelector('.tokens span');
    return tip.hidden ? null : tip.getBoundingClientRect().top - token.getBoundingClientRect().bottom;
})()"""
AXIS_COLOR = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"


@dataclass(frozen=True)
class Seen:
    """What a page did in one size and colour scheme."""

    messages: list[str]
    """Errors and warnings on the console, and exceptions."""
    requests: list[str]
    """Everything that was asked for, the file included."""
    overflow: int
    """Pixels by which the page is wider than the window."""
    num_figures: int
    not_drawn: list[str]
    cut_off: list[str]
    """Figures with text that sticks out."""
    under_legend: list[str]
    """Figures whose legend lies on the curves."""
    tooltip_gap: float | None
    """Pixels between a token that was clicked and what is said of it; None if nothing is."""
    text_color: str
    other_color: str
    """The same after the colour scheme has changed to the other one."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; its pages reach no network."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def look_at(browser: Any, report: Path, *, width: int, scheme: str) -> Seen:
    """Open a report and look at it."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(60_000)
    page: Page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []

    def answer(route: Route) -> None:
        requests.append(route.request.url)
        if route.request.url == report.as_uri():
            route.continue_()
        else:
            route.abort()

    page.on("console", lambda message: messages.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    context.route("**/*", answer)
    page.goto(report.as_uri())
    page.wait_for_function(DRAWN)
    color = page.evaluate(AXIS_COLOR)
    seen = {
        "overflow": page.evaluate(OVERFLOW),
        "num_figures": page.evaluate("document.querySelectorAll('.chart').length"),
        "not_drawn": page.evaluate(NOT_DRAWN),
        "cut_off": page.evaluate(CUT_OFF),
        "under_legend": page.evaluate(UNDER_LEGEND),
    }
    page.locator(".tokens span").first.click()
    seen["tooltip_gap"] = page.evaluate(TOOLTIP_GAP)
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    page.wait_for_function(f"{AXIS_COLOR} !== '{color}'")
    other = page.evaluate(AXIS_COLOR)
    context.close()
    return Seen(messages, requests, text_color=color, other_color=other, **seen)


def assert_good(report: Path, *, num_figures: int) -> None:
    """Look at a report in both sizes and colour schemes: nothing is wrong, and nothing else was asked for."""
    with chromium() as browser:
        for size, width, scheme in LOOKS:
            seen, where = look_at(browser, report, width=width, scheme=scheme), f"{size}, {scheme}"
            assert seen.messages == [], where
            assert set(seen.requests) <= {report.as_uri()}, where
            assert seen.overflow == 0, where
            assert seen.num_figures == num_figures, where
            assert (seen.not_drawn, seen.cut_off, seen.under_legend) == ([], [], []), where
            assert seen.tooltip_gap is not None, where
            assert 0 <= seen.tooltip_gap <= 10, where
            assert seen.text_color != seen.other_color, where
