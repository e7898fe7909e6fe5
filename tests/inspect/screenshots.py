"""Pictures of a report for the documentation: `python -m tests.inspect.screenshots RUN FOLDER`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from deepcompile.inspect.reader import read_run
from deepcompile.inspect.report.page import make_report
from tests.inspect.browser import Browser, find_browser


def main(run: str, folder: str) -> None:
    """Write a picture of each part into `folder`."""
    found = find_browser()
    if found is None:
        sys.exit("there is no Chromium to take pictures with")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    browser = Browser(found, 1040, 620)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        page.write_text(make_report(read_run(run)).html, encoding="utf-8")
        browser.prefer("light")
        browser.open(page)
        browser.run(
            "[...document.querySelectorAll('#pass-list .row')]"
            ".find((row) => /fuse-rows/.test(row.textContent)).click()"
        )
        browser.wait("document.querySelector('#pass-title').textContent.includes('fuse-rows')")
        browser.run(
            "[...document.querySelectorAll('#diff .row')]"
            ".find((row) => / = kernel @/.test(row.textContent)).click()"
        )
        browser.wait("document.querySelector('#details').innerText.includes('runs in')")
        browser.screenshot(out / "report-passes.png")
        for tab, scheme in (("graph", "light"), ("kernels", "light"), ("memory", "dark")):
            browser.prefer(scheme)
            browser.run(f"document.querySelector('#tab-{tab}').click()")
            browser.wait(f"!document.querySelector('#panel-{tab}').hidden")
            if tab == "kernels":
                browser.wait("document.querySelectorAll('#kernels-list .row').length")
            browser.screenshot(out / f"report-{tab}.png")
    browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
