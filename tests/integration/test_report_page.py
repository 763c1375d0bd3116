"""Reports in a real browser: drawn at every size and in every colour scheme, without a network."""

import json
from pathlib import Path

import pytest

from commands.report import write_report
from tests.integration.browser import assert_good, chromium, look_at, needs_browser
from tests.unit.synthetic_run import write_run

pytestmark = [needs_browser, pytest.mark.timeout(300)]


def test_the_report_of_a_run_is_drawn_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=40)
    write_report([folder], folder.report)
    assert_good(folder.report, num_figures=13)


def test_the_report_of_several_runs_is_drawn_whole_too(tmp_path: Path) -> None:
    names = ["power-alpha-5", "power-alpha-1", "a-run-with-quite-a-long-name-of-its-own"]
    folders = [write_run(tmp_path, name, alpha=5.0 - index) for index, name in enumerate(names)]
    write_report(folders, tmp_path / "report.html")
    assert_good(tmp_path / "report.html", num_figures=15)


def test_a_figure_whose_texts_do_not_fit_is_found(tmp_path: Path) -> None:
    """Of the checks above themselves: a page whose legends and labels have no space does not pass them."""
    folder = write_run(tmp_path, "first", steps=4)
    write_report([folder], folder.report)
    page = folder.report.read_text(encoding="utf-8")
    inside = 'y: 0.9, yanchor: "top", yref: "paper"'
    broken = page.replace('y: 1, yanchor: "top", yref: "container"', inside)
    broken = broken.replace("automargin: true", "automargin: false")
    assert inside in broken
    folder.report.write_text(broken, encoding="utf-8")
    with chromium() as browser:
        seen = look_at(browser, folder.report, width=400, scheme="dark")
    assert "reward" in seen.under_legend
    assert {"kl", "staleness"} <= {*seen.cut_off}
    assert seen.not_drawn == []


def test_texts_of_a_model_are_no_part_of_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", steps=4)
    hostile = "</script></pre><script>console.error('run')</script><img src=x onerror=\"console.error('run')\">"
    row = {"when": hostile, "problem_id": hostile, "prompt": hostile, "tokens": [hostile], "values": [1.0]}
    folder.samples.write_text(json.dumps({"step": 1, "value": "reward", **row}) + "\n")
    write_report([folder], folder.report)
    with chromium() as browser:
        seen = look_at(browser, folder.report, width=400, scheme="light")
    assert seen.messages == []
    assert set(seen.requests) == {folder.report.as_uri()}
    assert seen.overflow == 0
