"""Files -> rows: JSON Lines, JSON arrays, CSV, TSV and Parquet, gzipped or not, and folders of them."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import InputError, record

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*KINDS, *(kind + ".gz" for kind in KINDS))


def files_of(path: Path) -> list[Path]:
    """The file itself, or the data files in and below a folder, by name. InputError if there is none."""
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(f"there is no file {path}; give a {' '.join(KINDS)} file (or .gz), or a folder of such files")
    return files


def digest(path: Path) -> str:
    """SHA-256 (first 16 hex digits) of the file, or over those of a folder's files."""
    digests = [record.file_digest(file) for file in files_of(path)]
    return digests[0][:16] if path.is_file() else record.digest_of(digests)


def read_file(path: Path) -> Iterator[Any]:
    """The rows of a file, or of the files of a folder. InputError if one cannot be read, with the line that is no JSON.

    What is no whole JSON value is JSON Lines. A line ends at \\n alone: U+2028 may stand in a JSON string."""
    for file in files_of(path):
        number = 0
        try:
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            if ".parquet" in file.suffixes:
                import pyarrow.parquet

                yield from pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
                continue
            text = content.decode("utf-8-sig")
            if ".csv" in file.suffixes or ".tsv" in file.suffixes:
                csv.field_size_limit(sys.maxsize)
                between = "," if ".csv" in file.suffixes else "\t"
                yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=between, restkey="beyond the header")
            elif whole := text.strip():
                first, end = json.JSONDecoder().raw_decode(whole)
                if end == len(whole):
                    yield from first if isinstance(first, list) else [first]
                    continue
                for line in text.split("\n"):
                    number += 1
                    if line.strip():
                        yield json.loads(line)
        except (OSError, EOFError, ValueError, csv.Error) as error:
            where = f"{file}, line {number} is not JSON" if number else f"{file} cannot be read"
            raise InputError(f"{where}: {error}; mend or remove it") from None
