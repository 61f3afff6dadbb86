"""The notebooks carry no outputs, are numbered, use what is there, and leave the repository alone.

That they run is tested by nbmake, in ``make test``.
"""

import ast
import configparser
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Where a distribution and what is imported of it differ in name, and what comes with jupyterlab.
MODULES = {"scikit-learn": "sklearn", "Pillow": "PIL", "jupyterlab": "IPython"}
OPTIONAL = {"umap"}  # drawn where it is installed
BY_WAY_OF_PANDAS = {"numpy"}  # as in dml itself

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def tree(path):
    return ast.parse("\n".join("".join(cell["source"]) for cell in cells(path, "code")))


def imports(path):
    """Pairs of a module and what is imported from it, None for the module itself."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module, alias.name) for alias in node.names]
    return found


def dependencies():
    """Top-level modules that an installation with the extra ``notebooks`` has by right."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"] + parser["options.extras_require"]["notebooks"]
    names = [re.split(r"[\s\[<>=]", line)[0] for line in lines.strip().splitlines() if line.strip()]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def test_they_are_numbered_from_one():
    assert [path.stem.partition("_")[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@every_notebook
def test_it_carries_no_outputs(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert cell["metadata"] == {}


@every_notebook
def test_it_begins_with_its_title_and_draws_figures_with_named_axes(path):
    assert "".join(cells(path, "markdown")[0]["source"]).startswith("# ")
    code = "\n".join("".join(cell["source"]) for cell in cells(path, "code"))
    assert code.count("plt.subplots(") >= 2
    assert "xlabel" in code


@every_notebook
def test_what_it_imports_of_dml_is_there(path):
    found = [(module, name) for module, name in imports(path) if module.partition(".")[0] == "dml"]
    assert found
    for module, name in found:
        imported = importlib.import_module(module)
        assert name is None or hasattr(imported, name), f"{module} has no {name}"


@every_notebook
def test_it_imports_dependencies_only(path):
    found = {module.partition(".")[0] for module, _ in imports(path)}
    assert found - sys.stdlib_module_names - dependencies() - OPTIONAL - BY_WAY_OF_PANDAS == {"dml"}


@every_notebook
def test_its_files_go_to_a_temporary_folder(path):
    source = ast.unparse(tree(path))
    if "Trainer(" in source or "Glyphs.draw(" in source or "main(" in source:
        assert "tempfile.TemporaryDirectory()" in source
    assert source.count("Trainer(") == source.count("default_root_dir=folder")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"(/|data/|runs/|\.\.?/)\w", node.value), f"{node.value!r} is a path of a machine"


@every_notebook
def test_lines_fit(path):
    for cell in json.loads(path.read_text())["cells"]:
        for line in "".join(cell["source"]).splitlines():
            assert len(line) <= 120, line
