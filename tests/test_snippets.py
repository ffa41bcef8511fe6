"""Every Python block of the README and of the manual runs: plain code as it stands, sessions (`>>>`) by doctest.

The blocks of one file share their names, in the order in which they are read.
"""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(text: str, path: str) -> int:
    """Run the blocks of a page, in one namespace; return how many there were."""
    names: dict[str, object] = {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        code, line = block[1], text.count("\n", 0, block.start(1))
        if ">>>" in code:
            session = doctest.DocTestParser().get_doctest(code, names, path, path, line)
            doctest.DebugRunner().run(session, clear_globs=False)
            names.update(session.globs)  # a session works on a copy
        else:
            exec(compile("\n" * line + code, path, "exec"), names)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(page: Path):
    assert run_page(page.read_text("utf-8"), str(page)) > 0 or page.name != "README.md"


def test_a_false_snippet_is_caught():
    with pytest.raises(AssertionError):
        run_page("```python\nx = 1\n```\nand then\n```python\nassert x == 2\n```\n", "page.md")
    with pytest.raises(doctest.DocTestFailure):
        run_page("```python\nx = 1\n```\nand then\n```python\n>>> x\n2\n```\n", "page.md")


def test_later_blocks_know_the_names_of_earlier_ones():
    assert run_page("```python\n>>> x = 1\n```\n```python\nassert x == 1\n```\n```sh\nfalse\n```\n", "page.md") == 2
