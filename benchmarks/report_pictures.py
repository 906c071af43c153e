"""Pictures of a validation for README.md and docs/validation.md: the head of its report, and its dose curve.

    python benchmarks/report_pictures.py impolite-report/report.html docs/images

Writes report.png and dose-curve.png. Needs playwright and Debian's chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

WIDTH, HEIGHT = 1280, 2250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light").new_page()
        page.goto(arguments.report.resolve().as_uri())
        page.screenshot(path=arguments.folder / "report.png")
        sharp = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2).new_page()
        sharp.goto(arguments.report.resolve().as_uri())
        sharp.locator("figure svg").first.screenshot(path=arguments.folder / "dose-curve.png")
        chromium.close()


if __name__ == "__main__":
    main()
