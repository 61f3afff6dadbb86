"""What a loss costs, from the tables of benchmarks/RESULTS.md, where a page says ``<!-- cost: SmoothAPLoss -->``."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"
_MARKER = re.compile(r"<!-- cost: (\w+) -->")


def cost_of(loss: str) -> str:
    """The rows of a loss as a table in Markdown, with the line that says on what machine they were taken.

    Raises:
        ValueError: If there is no row of the loss.
    """
    section = RESULTS.read_text().partition("## Losses\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("| \n").split("|")] for line in section.splitlines() if line[:1] == "|"
    ]
    measured = [row for row in rows if row[0] == loss and len(row) == len(rows[0]) and row[2]]
    if not measured:
        raise ValueError(f"loss is {loss}; benchmarks/RESULTS.md has no row of it")
    columns = range(1, 5)
    lines = [[rows[0][column] for column in columns], ["---:"] * len(columns)]
    lines += [[row[column] for column in columns] for row in measured]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (machine,) = re.findall(r"^(\d+ threads on .*?), chunks as the losses choose", section, re.MULTILINE | re.DOTALL)
    return f"{table}\n\n*`python -m benchmarks.losses`: forward and backward, {' '.join(machine.split())}.*"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called by MkDocs with the text of each page."""
    return _MARKER.sub(lambda found: cost_of(found[1]), markdown)
