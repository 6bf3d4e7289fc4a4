"""Say which sections of a page changed since it was translated; or, once they are translated, note that.

python docs/translations.py            # lists what fell behind
python docs/translations.py --stamp    # copies the original's code blocks into the translation, and notes its sections

A translated page begins with a comment: the original, and the hash of each of its sections when it was translated.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.zh.md": "README.md", "docs/tutorial.zh.md": "docs/tutorial.md"}
STAMP = re.compile(r"<!-- translated from \S+\n(.*?)-->\n", re.DOTALL)
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def hash_sections(page: str) -> dict[str, str]:
    """Return the hash of each section's text, by its heading."""
    is_code, heading, texts = False, "", {"": ""}
    for line in page.splitlines():
        is_code ^= line.startswith("```")
        if line.startswith("#") and not is_code:
            heading = line.lstrip("# ")
        texts[heading] = texts.get(heading, "") + line + "\n"
    return {heading: hashlib.sha256(text.encode()).hexdigest()[:12] for heading, text in texts.items() if text}


def find_behind(translation: str, original: str) -> list[str]:
    """Return what the translation lacks: one sentence for each section that differs from what it was made from."""
    stamp = STAMP.match(translation)
    made_from = dict(reversed(line.split(" ", 1)) for line in stamp[1].splitlines()) if stamp else {}
    now = hash_sections(original)
    found = [f"{heading!r} changed" for heading in now if heading in made_from and now[heading] != made_from[heading]]
    found += [f"{heading!r} is new" for heading in now if heading not in made_from]
    found += [f"{heading!r} was removed" for heading in made_from if heading not in now]
    if CODE.findall(translation) != CODE.findall(original):
        found.append("its code blocks are not the original's")
    return found


def stamp(translation: str, original: str, name: str) -> str:
    """Return the translation with the original's code blocks, and the hashes of its sections."""
    text, blocks = STAMP.sub("", translation, count=1), CODE.findall(original)
    if len(CODE.findall(text)) != len(blocks):
        sys.exit(f"the translation of {name} has {len(CODE.findall(text))} code blocks, and {name} has {len(blocks)}")
    remaining = iter(blocks)
    text = CODE.sub(lambda _: next(remaining), text)
    hashes = "".join(f"{value} {heading}\n" for heading, value in hash_sections(original).items())
    return f"<!-- translated from {name}\n{hashes}-->\n{text}"


def main() -> None:
    """Run the command."""
    num_behind = 0
    for name, source in PAGES.items():
        page, original = ROOT / name, (ROOT / source).read_text(encoding="utf-8")
        if "--stamp" in sys.argv:
            page.write_text(stamp(page.read_text(encoding="utf-8"), original, source), encoding="utf-8")
        for one in find_behind(page.read_text(encoding="utf-8"), original):
            sys.stdout.write(f"{name}: {one}\n")
            num_behind += 1
    sys.exit(min(num_behind, 1))


if __name__ == "__main__":
    main()
