"""Take the pictures of a report that the pages show, light and dark: `python docs/make_screenshots.py INDEX.html`.

Needs Chromium, and Pillow of `make setup`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1100, 1500
DARK = "@media screen and (prefers-color-scheme: dark)"


def take(page: Path, folder: Path) -> None:
    """Write report-light.webp and report-dark.webp, the top of the page, into `folder`."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed")
    text = page.read_text(encoding="utf-8")
    for name, shown in (("light", text), ("dark", text.replace(DARK, "@media screen"))):
        with tempfile.TemporaryDirectory() as temporary:
            copy, shot = Path(temporary) / "index.html", Path(temporary) / "shot.png"
            copy.write_text(shown, encoding="utf-8")
            command = [
                chromium,
                "--headless",
                "--no-sandbox",
                "--hide-scrollbars",
                f"--user-data-dir={temporary}/profile",
            ]
            command += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", copy.as_uri()]
            subprocess.run(command, check=True, capture_output=True)
            Image.open(shot).convert("RGB").save(folder / f"report-{name}.webp", quality=80)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(__file__).parent)
