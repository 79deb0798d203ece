"""Hooks of MkDocs: pages and figures outside docs/ join the site, with links that work on both.

In the repository a page of docs/ links to `../kernels/README.md`, and that page to `../docs/x.md`.
In the site all pages have the folder docs/ as their root.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md", "bench/README.md", "bench/RESULTS.md",
)  # fmt: skip


def on_files(files, config):
    """Adds the pages, and the figures that they show."""
    figures = (path.relative_to(ROOT) for path in (ROOT / "bench" / "results").glob("*.png"))
    for path in (*PAGES, *map(str, figures)):
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, **_):
    """Turns links between docs/ and the rest of the repository into links of the site."""
    if page.file.src_uri in PAGES:
        return re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", markdown)
    return markdown.replace("](../", "](" + "../" * page.file.src_uri.count("/"))
