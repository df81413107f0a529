"""README and docs/ say what is there: links lead somewhere, and no page, tool or flag is left out."""

import re
import runpy
from types import SimpleNamespace

import pytest
from commands import ROOT
from documents import PAGES, anchors, links, paths


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target in links(path):
        if not target.startswith(("https://", "http://")):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{path.name}: {target}"
    for named in paths(path):
        assert (ROOT / named).exists(), f"{path.name}: {named}"


def test_links_and_anchors_are_found_where_they_are():
    found = set(links(ROOT / "README.md"))
    assert {"docs/cli.md", "docs/troubleshooting.md", "LICENSE"} <= found
    assert {"what-is-promised", "yuyuan-gpt2-35b-32-a100-then-16"} <= anchors(ROOT / "README.md")
    assert "no-such-heading" not in anchors(ROOT / "README.md")
    assert sum(1 for path in PAGES for _ in paths(path)) > 20


def test_the_readme_names_every_page_tool_and_module():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in readme, path
    tree = readme[readme.index("## What is where") : readme.index("Read in this order")]
    for path in [*(ROOT / "tools").iterdir(), *(ROOT / "megatron_yuyuan").iterdir()]:
        if not path.name.startswith("__"):
            stem = re.sub(r"^(validation|config)_.*", r"\1", path.stem)
            assert re.search(rf"\b{stem}", tree), path


def test_the_reference_of_flags_is_what_the_parsers_say():
    reference = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "write_cli_reference.py")))
    assert reference.PAGE.read_text() == reference.page(), "python tools/write_cli_reference.py"
