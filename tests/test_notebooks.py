"""The notebooks as they lie there: in step with their scripts, free of outputs, and true in what they import, pin and
link to. That they run is test_notebooks_run.py's matter."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

HOME = Path(__file__).parents[1]
NOTEBOOKS = sorted((HOME / "notebooks").glob("*.ipynb"))
PYPROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
REPOSITORY = PYPROJECT["urls"]["Repository"]
DOCUMENTS = [HOME / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, as_version=4).cells


def code_of(cells) -> str:
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def test_all_five_are_here():
    assert [path.stem for path in NOTEBOOKS] == ["1_train", "2_evaluate", "3_sweep", "4_speed", "5_publish"]


def test_it_is_in_step_with_its_script(path):
    paired = jupytext.read(path.with_suffix(".py"))
    notebook = jupytext.read(path)
    assert notebook.metadata["jupytext"]["formats"] == "ipynb,py:percent"
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in paired.cells
    ], "run `jupytext --sync notebooks/*.ipynb`"
    written = jupytext.writes(notebook, "py:percent")
    no_version = re.compile(r"#\s+jupytext_version: .*\n")
    assert no_version.sub("", written) == no_version.sub("", path.with_suffix(".py").read_text())


def test_it_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"accelerator", "colab", "jupytext", "kernelspec"}  # no widgets
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_its_shape(path, cells):
    assert len(cells) <= 15
    assert cells[0].source.startswith("# ") and "T4" in cells[0].source and "CPU" in cells[0].source
    assert [cell.cell_type for cell in cells[1:3]] == ["code", "code"]
    install, choices = cells[1].source, cells[2].source
    assert install == nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
    assert "# @param" in choices and all("# @param" not in cell.source for cell in cells[3:])
    assert any(cell.source.startswith("## When it breaks") for cell in cells)
    chosen = [node for node in ast.parse(choices).body if isinstance(node, ast.Assign)]
    assert len(chosen) == len(ast.parse(choices).body), "choices are assignments, nothing else"
    assert all(isinstance(node.value, ast.Constant) for node in chosen)


def test_it_holds_no_logic(cells):
    """Below the install cell there are imports, assignments and calls only, and every choice is used."""
    for cell in cells[2:]:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr) for node in tree.body)
            assert not any(isinstance(node, ast.IfExp | ast.ListComp | ast.Lambda) for node in ast.walk(tree))
    rest = {node.id for node in ast.walk(ast.parse(code_of(cells[3:]))) if isinstance(node, ast.Name)}
    assert {node.targets[0].id for node in ast.parse(cells[2].source).body} <= rest


def test_every_name_of_iris_exists(cells):
    tree = ast.parse(code_of(cells[2:]))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "iris", "a notebook imports modules of iris alone"
            modules |= {alias.name: importlib.import_module(f"iris.{alias.name}") for alias in node.names}
        assert not isinstance(node, ast.Import)
    assert modules
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"iris.{node.value.id} has no {node.attr}"
            assert not node.attr.startswith("_")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = getattr(node.func.value, "id", None)
            if owner in modules:
                given = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(getattr(modules[owner], node.func.attr)).bind(*node.args, **given)
    choices = importlib.import_module("iris.notebook").Choices
    known = {*choices.__dataclass_fields__, *vars(choices)}
    assert set(re.findall(r"\bchosen\.(\w+)", code_of(cells))) <= known


def test_pins_are_those_of_pyproject():
    tree = ast.parse(nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source)
    pins = next(node.value.value for node in tree.body if isinstance(node, ast.Assign)).split()
    extras = PYPROJECT["optional-dependencies"]
    wanted = [*PYPROJECT["dependencies"], *extras["train"], *extras["eval"], extras["gpu"][0]]
    assert pins == [pin for pin in wanted if not pin.startswith("torch==")]
    assert extras["gpu"][0].startswith("bitsandbytes")  # Unsloth would bring its own torch; Iris' engine needs none
    torch = next(pin for pin in extras["train"] if pin.startswith("torch=="))
    assert repr(torch.partition("==")[2]) in ast.unparse(tree)


def test_links_are_of_the_one_repository(path, cells):
    """Owner and repository are named in pyproject.toml; every link follows it."""
    slug = REPOSITORY.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}"
    heading, empty, badge, *_ = cells[0].source.splitlines()
    assert heading.startswith("# ") and not empty
    assert badge == f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    links = re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", "\n".join(cell.source for cell in cells))
    assert links and set(links) == {REPOSITORY}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_documents(document):
    slug = REPOSITORY.removeprefix("https://github.com/")
    known = {f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}" for path in NOTEBOOKS}
    text = document.read_text()
    assert set(re.findall(r"https://colab\.research\.google\.com/github/[^)\s]+", text)) <= known
    owner = slug.partition("/")[0]
    ours = re.findall(rf"https://github\.com/(?:{owner}|[\w.-]+/iris\b)[\w./-]*", text)
    assert all(link.startswith(REPOSITORY) for link in ours)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_points_to_is_here(document):
    """Relative links and pictures, and the files named in the README's tree."""
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (HOME / target).exists(), f"{document.name} points to {target}, which is not here"
    if document.name == "README.md":
        tree = text.split("src/iris/\n")[1].split("app.py")[0]
        named = set(re.findall(r"(\w+\.py)\b", tree))
        here = {path.name for path in (HOME / "src" / "iris").glob("*.py") if not path.name.startswith("__")}
        assert here - named <= {"errors.py"} and named <= here | {"sound.py", "verse.py"}
