"""Pictures of the page for docs/page.md: a real server and model, Chromium, light and dark, wide and narrow.

    python benchmarks/page_pictures.py http://127.0.0.1:8000 docs/images

The server is `poise serve` with vectors, the first of which is turned. Needs playwright and Debian's chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

QUESTION = "I got a new haircut today. Do you want to see it?"
FORMATTED = "Compare green and black tea in a small table, then list three steps to brew either."
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 400, "height": 800}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dose", default="20", help="of the first dial, in percent")
    parser.add_argument("--seed", default="2")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme, size, suffix in (("light", WIDE, ""), ("dark", WIDE, "-dark"), ("light", NARROW, "-narrow")):
            page = chromium.new_context(viewport=size, color_scheme=scheme).new_page()
            page.set_default_timeout(600_000)
            page.goto(arguments.url)
            page.locator(".card").first.wait_for(state="attached")
            _take(page, arguments, suffix)
        chromium.close()


def _take(page: Any, arguments: argparse.Namespace, suffix: str) -> None:
    narrow = suffix == "-narrow"

    def picture(name: str) -> None:
        page.wait_for_timeout(400)
        page.screenshot(path=arguments.folder / f"page-{name}{suffix}.png")

    def ask(question: str) -> None:
        page.get_by_label("Your question").fill(question)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Ask", exact=True).wait_for()

    def sheet() -> None:
        if narrow:
            page.locator("#chat .sheet-open").click()

    sheet()
    page.get_by_label("Seed").fill(arguments.seed)
    page.get_by_label("Longest answer").fill("120")
    page.locator(".card .exact").first.fill(arguments.dose)
    if narrow:
        picture("dials")
        page.keyboard.press("Escape")
    ask(QUESTION)
    page.evaluate("() => window.scrollTo(0, 0)")  # to the question, which has gone up under the answer
    picture("chat")
    if suffix != "":
        return
    ask(FORMATTED)
    picture("formatted")
    page.get_by_role("link", name="Side by side").click()
    page.get_by_label("Prompt", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Ask both").click()
    page.get_by_text("an example, not a measurement").wait_for()
    page.locator("#compare-stop:disabled").wait_for(state="attached")  # the page forbids to evaluate text as script
    picture("compare")
    page.get_by_role("link", name="Vectors").click()
    page.locator("#vector-list details").first.evaluate("(details) => { details.open = true; }")
    picture("vectors")


if __name__ == "__main__":
    main()
