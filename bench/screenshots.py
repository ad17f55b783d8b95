"""The pictures of the room in results/: python bench/screenshots.py [--url http://127.0.0.1:7860] [--theme ...]

Opens the page of a running room in Chromium, lets it write a poem that keeps its form, and takes a picture in light, in
dark and on a phone.
"""

import argparse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

DESK: dict[str, Any] = {"viewport": {"width": 1366, "height": 768}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
VIEWS = {"light": DESK | {"color_scheme": "light"}, "dark": DESK | {"color_scheme": "dark"}, "phone": PHONE}

parser = argparse.ArgumentParser(description="Take the pictures of the room.")
parser.add_argument("--url", default="http://127.0.0.1:7860")
parser.add_argument("--theme", default="the sea at night")
parser.add_argument("--form", default="quatrain")
parser.add_argument("--seed", default="1")
parser.add_argument("--out", type=Path, default=Path("results"))
args = parser.parse_args()
asked = urlencode({"about": args.theme, "form": args.form, "seed": args.seed})
with sync_playwright() as playwright:
    flags = ["--no-sandbox", "--disable-gpu"]
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
    for name, options in VIEWS.items():
        page = browser.new_context(**options).new_page()
        page.goto(f"{args.url}/?{asked}")
        page.wait_for_selector("#sheet [aria-busy=false] .line", timeout=120_000)
        page.wait_for_timeout(1500)  # until a phone has scrolled
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=args.out / f"room-{name}.png")
