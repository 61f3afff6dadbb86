"""The pages build without a warning, show what they should, name what exists, and load nothing from elsewhere."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import griffe
import pytest
import yaml

import dml
import dml.losses
from dml.__main__ import main
from docs.hooks import costs, formulas, roles

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LOSSES = [name for name in dml.losses.__all__ if name != "RankLoss"]
SECTIONS = ["When to use it", "Cost", "Equality to published code", "Use it"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    silent = {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False, env=os.environ | silent
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Page(HTMLParser):
    """Links, anchors, what is loaded, and the text outside of code, of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loaded, self.text, self._code = [], {"", "__top"}, [], [], 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        if tag == "a":
            self.links.append(found.get("href", ""))
        if tag in ("script", "img", "iframe") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loaded.append(found["href"])
        self._code += tag in ("code", "script", "style")

    def handle_endtag(self, tag):
        self._code -= tag in ("code", "script", "style")

    def handle_data(self, data):
        if not self._code:
            self.text.append(data)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def is_elsewhere(link):
    return re.match(r"[a-z]+:|//", link) is not None


def test_every_internal_link_resolves(pages):
    for path, page in pages.items():
        for link in filter(lambda link: link and not is_elsewhere(link), page.links):
            target, anchor = urldefrag(link)
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{path} links to {link}"
            assert file.suffix != ".html" or unquote(anchor) in pages[file].anchors, f"{path} links to {link}"


def test_nothing_is_loaded_from_elsewhere(pages, site):
    for path, page in pages.items():
        for source in page.loaded:
            assert not is_elsewhere(source), f"{path} loads {source}"
            assert (path.parent / source).is_file(), f"{path} loads {source}"
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//", styles) == []


def test_no_markup_is_left_over(pages):
    for path, page in pages.items():
        text = "".join(page.text)
        assert re.findall(r":(?:class|func|meth|attr|mod|data|math):|\.\. \w+::|\\[()\[\]]|\$\$|--8<--", text) == [], (
            path
        )


def test_every_page_is_in_the_menu():
    def leaves(entry):
        return [entry] if isinstance(entry, str) else [leaf for part in children(entry) for leaf in leaves(part)]

    def children(entry):
        return entry.values() if isinstance(entry, dict) else entry

    menu = re.findall(r"^nav:\n.*", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE | re.DOTALL)[0]
    assert sorted(leaves(yaml.safe_load(menu)["nav"])) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_page(name, site):
    module = getattr(dml.losses, name).__module__.rpartition(".")[2]
    text = (DOCS / "losses" / f"{module}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert f"\n::: dml.losses.{name}\n" in text
    assert "\n$$" in text
    assert f"]({module}.svg)\n" in text
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    (overlay, *_) = re.findall(r'^--8<-- "(experiments/losses/.*)"$', text, flags=re.MULTILINE)
    assert f"dml.losses.{name}" in (ROOT / overlay).read_text()
    built = (site / "losses" / f"{module}.html").read_text()
    assert f'id="dml.losses.{name}"' in built
    assert "<math" in built
    assert (site / "losses" / f"{module}.svg").stat().st_size > 10_000


def test_every_overlay_of_a_loss_is_on_a_page():
    text = "".join(page.read_text() for page in (DOCS / "losses").glob("*.md"))
    overlays = sorted(path.name for path in (ROOT / "experiments" / "losses").glob("*.yaml"))
    assert [name for name in overlays if f"experiments/losses/{name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"(?<![\w/.])(?:experiments|tests|benchmarks|dml|notebooks)/[\w/.-]*\w", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def commands():
    """Each ``dml`` command of the pages, as words."""
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    lines = "".join(blocks).replace("\\\n", " ").replace("$seed", "0").splitlines()
    words = {tuple(shlex.split(line, comments=True)) for line in lines}
    return sorted(found for found in words if found[:1] == ("dml",))


def with_options():
    """Commands of the trainer that change more than which YAMLs there are, which the tests of experiments run.

    A checkpoint has the configuration of its run, which is named like the experiment.
    """
    found = set()
    for _, subcommand, *words in commands():
        if subcommand in ("fit", "test", "predict") and not any("my_" in word for word in words):
            bases = [f"experiments/{path.split('/')[1]}.yaml" for path in words if path.startswith("runs/")]
            pairs = list(zip(words[::2], words[1::2], strict=True))
            if {option for option, _ in pairs} > {"-c"}:
                kept = [word for pair in pairs if pair[0] != "--ckpt_path" for word in pair]
                found.add((subcommand, *(word for base in bases for word in ("-c", base)), *kept))
    return sorted(words for words in found if any(word.startswith("--") for word in words))


@pytest.mark.parametrize("words", with_options(), ids=shlex.join)
def test_commands_of_the_trainer_are_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code in (0, None)
    assert "dataset" in yaml.safe_load(printed.getvalue())["data"]


OTHERS = [found for found in commands() if found[1] not in ("fit", "test", "predict")]


@pytest.mark.parametrize("command", OTHERS, ids=shlex.join)
def test_other_commands_have_these_options(command):
    words = command[1:3] if command[1] == "data" else command[1:2]
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main([*words, "--help"])
    assert [word for word in command if word.startswith("--") and word not in printed.getvalue()] == []


def test_costs_are_those_of_the_results():
    table = costs.cost_of("SmoothAPLoss")
    assert table.startswith("| B | ms | MiB added | x floor |\n| ---: |")
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    rows = re.findall(r"^\| (\d+ \|.*) \|$", table, flags=re.MULTILINE)
    assert len(rows) == 7
    assert all(f"| SmoothAPLoss | {row} |" in results for row in rows)
    assert "torch" in table.splitlines()[-1]
    with pytest.raises(ValueError, match="loss is NoLoss"):
        costs.cost_of("NoLoss")


def test_rows_that_are_not_run_are_left_out():
    assert "not run" not in costs.cost_of("SupHAPLoss")


def test_the_memory_costs_what_the_results_say():
    section = (ROOT / "benchmarks" / "RESULTS.md").read_text().partition("## Training")[2]
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \|$", (DOCS / "losses" / "cross_batch_memory.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 4
    assert all(f"| {size} | 256 | 512 | {time} | {memory} |" in section for size, time, memory in rows)


def test_formulas_become_mathml():
    element = formulas.to_mathml(r"\frac{a}{b}", block=True)
    assert element.startswith('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">')
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in element
    with pytest.raises(ValueError, match="nosuchcommand"):
        formulas.to_mathml(r"\nosuchcommand{a}", block=False)


SOURCE = '''
"""Module."""
from elsewhere import Other

class One:
    """See :meth:`two`, :class:`~package.module.One`, :class:`Other` and :math:`a_i`.

    .. math:: a + b,
        \\\\quad c

    After::

        code
    """

    def two(self):
        """See :attr:`three`."""

class Heir(One):
    """See :meth:`two`."""
'''


@pytest.fixture
def package(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from package.module import One\n")
    (tmp_path / "package" / "module.py").write_text(SOURCE)
    return griffe.load("package", search_paths=[tmp_path], allow_inspection=False)


def test_roles_become_markdown(package):
    one = package["module.One"]
    text = roles.to_markdown(one.docstring.value, one)
    assert '<autoref optional identifier="package.module.One.two"><code>two</code></autoref>' in text
    assert '<autoref optional identifier="package.module.One"><code>One</code></autoref>' in text
    assert '<autoref optional identifier="elsewhere.Other"><code>Other</code></autoref>' in text
    assert r"\(a_i\)" in text
    assert "\n$$a + b, \\quad c$$\n" in text
    assert "\nAfter:\n\n    code" in text
    assert ":class:" not in text


def test_inherited_names_are_found(package):
    heir = package["module.Heir"]
    assert roles.path_of("two", heir) == "package.module.One.two"


def test_a_reference_to_nothing_is_an_error(package):
    two = package["module.One.two"]
    with pytest.raises(ValueError, match=r"package.module.One.two refers to 'three'"):
        roles.to_markdown(two.docstring.value, two)
    with pytest.raises(ValueError, match=r"'package.module.Three'"):
        roles.path_of("package.module.Three", two)


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dml.__version__
    newest = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0]
    assert newest == (dml.__version__, str(citation["date-released"]))


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [field["id"] for field in form["body"]]
    assert len(fields) == len(set(fields))
    assert {field["type"] for field in form["body"]} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in form["body"])


def test_hooks_before_a_commit_are_installed_programs():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    programs = [Path(hook["entry"].split()[0]) for hook in local["hooks"]]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    assert [program for program in programs if not (Path(sys.executable).parent / program.name).exists()] == []
