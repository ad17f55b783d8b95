"""The notebooks as they lie there: in step with their scripts, free of outputs, and true in what they import, pin and
link to. That they run is test_notebooks_run.py's matter."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

HOME = Path(__file__).parents[1]
NOTEBOOKS = sorted((HOME / "notebooks").glob("*.ipynb"))
PYPROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
REPOSITORY = PYPROJECT["urls"]["Repository"]
COLAB = REPOSITORY.replace("github.com", "colab.research.google.com/github") + "/blob/main/notebooks/"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, as_version=4).cells


def test_it_is_in_step_with_its_script(path):
    notebook = jupytext.read(path)
    assert notebook.metadata["jupytext"]["formats"] == "ipynb,py:percent"
    written = jupytext.writes(notebook, "py:percent")
    no_version = re.compile(r"#\s+jupytext_version: .*\n")
    script = path.with_suffix(".py").read_text()
    assert no_version.sub("", written) == no_version.sub("", script), "run `jupytext --sync notebooks/*.ipynb`"


def test_it_is_clean_of_one_shape_and_uses_modules_of_iris_alone(path, cells):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"accelerator", "colab", "jupytext", "kernelspec"}  # no widgets
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.metadata for cell in cells)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert len(cells) <= 15 and cells[1:3] == code[:2]
    assert cells[0].source.startswith("# ") and "T4" in cells[0].source and "CPU" in cells[0].source
    install, choices = cells[1].source, cells[2].source
    assert install == nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
    assert "# @param" in choices and all("# @param" not in cell.source for cell in cells[3:])
    assert any(cell.source.startswith("## When it breaks") for cell in cells)
    body = ast.parse(choices).body  # choices are assignments, nothing else
    assert all(isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) for node in body)
    rest = "\n".join(cell.source for cell in code[1:])  # mypy sees that what it calls is there
    imports = re.findall(r"^(?:from|import) .*$", rest, re.MULTILINE)
    assert imports and all(line.startswith("from iris") for line in imports) and not re.search(r"\._[a-z]", rest)


def test_it_installs_the_extras_of_pyproject():
    install = nbformat.read(NOTEBOOKS[0], as_version=4).cells[1].source
    name, extras, address = re.search(r'"([\w-]+)\[([\w,]+)\] @ git\+(\S+)"', install).groups()
    assert (name, address) == (PYPROJECT["name"], REPOSITORY)
    assert set(extras.split(",")) <= PYPROJECT["optional-dependencies"].keys()


@pytest.mark.slow
def test_installing_leaves_a_torch_that_is_there_alone(tmp_path):
    """Another torch stands in an environment already, as in Colab: pip plans to install neither it nor its CUDA."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    site = next((tmp_path / "env" / "lib").glob("*/site-packages"))
    torch = site / "torch-2.11.0+cu128.dist-info"
    torch.mkdir()
    (torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0+cu128\n")
    wanted = f"{PYPROJECT['name']}[train,eval,gpu] @ file://{HOME}"
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", wanted]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    planned = {each["metadata"]["name"] for each in plan["install"]}
    assert {"transformers", "lm_eval", "bitsandbytes"} <= planned
    assert not {name for name in planned if name in ("torch", "triton") or name.startswith("nvidia")}


def test_links_are_of_the_one_repository(path, cells):
    """Owner and repository are named in pyproject.toml; every link follows it."""
    heading, empty, badge, *_ = cells[0].source.splitlines()
    assert heading.startswith("# ") and not empty
    assert badge == f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({COLAB}{path.name})"
    links = re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", "\n".join(cell.source for cell in cells))
    assert links and set(links) == {REPOSITORY}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"])
def test_what_a_document_points_to_is_here(name):
    """Links to notebooks and to the repository, relative links and pictures, and the folders of the README's tree."""
    text, owner = (HOME / name).read_text(), REPOSITORY.split("/")[3]
    known = {f"{COLAB}{path.name}" for path in NOTEBOOKS}
    assert set(re.findall(r"https://colab\.research\.google\.com/github/[^)\s]+", text)) <= known
    ours = re.findall(rf"https://github\.com/(?:{owner}|[\w.-]+/iris\b)[\w./-]*", text)
    assert all(link.startswith(REPOSITORY) for link in ours)
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (HOME / target).exists(), f"{name} points to {target}, which is not here"
    if name == "README.md":
        named = set(re.findall(r"^  (\w+(?:\.py|/)) ", text.split("src/iris/\n")[1].split("\napp.py")[0], re.MULTILINE))
        rooms = {f"{path.parent.name}/" for path in (HOME / "src" / "iris").glob("*/__init__.py")}
        assert rooms <= named and all((HOME / "src" / "iris" / name).exists() for name in named)
