"""The command line: a function a verb, whose heavy imports happen inside, so that --help answers at once.

iris train --data verses --learning-rate 5e-4 --out runs/first      # every field of the recipe is a flag
"""

import argparse
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from importlib import import_module, metadata
from json import dumps
from pathlib import Path
from typing import Any, NoReturn

from . import InputError, RunError, __version__, recipe
from .evaluate.tasks import DEFAULT


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong argument ends with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see `{self.prog} --help`)")


def main(argv: list[str] | None = None) -> int:
    """Run one verb. 0: done; 1: the run failed; 2: a wrong argument or input; 130: interrupted."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        flags = vars(parser().parse_args([word for word in argv if word != "--debug"]))
        flags.pop("debug")
        flags.pop("verb")(**flags)
        return 0
    except KeyboardInterrupt:
        print("iris: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `iris ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        told = str(error)
        if not isinstance(error, InputError | RunError):
            told = f"{type(error).__name__}: {told.partition(chr(10))[0]} (run again with --debug for the trace)"
        print(f"iris: {told}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="iris", description="Fine-tune a small open model, prove whether it got better, hear it recite.")
    top.add_argument("--version", action="version", version=f"iris {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, function: Callable[..., Any], text: str) -> Any:
        """A verb is a function that is called with its flags as keywords; returned is what adds a flag."""
        one = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        one.add_argument("--debug", action="store_true", help="show the trace of an error")
        one.set_defaults(verb=function)
        return one.add_argument

    def add_recipe(flag: Any) -> None:
        for item in fields(recipe.Recipe):
            usual = ",".join(item.default) if isinstance(item.default, tuple) else item.default
            text = item.metadata["help"] + (f" (default: {usual})" if usual is not None else "")
            kind = str(item.type).partition(" ")[0].partition("[")[0].upper()
            flag(f"--{item.name.replace('_', '-')}", type=partial(recipe.parse, item.name), metavar=kind, help=text)
        text = "the same for any of these: --set learning_rate=1e-3"
        flag("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=text)
        flag("--refuse", type=Path, metavar="DIR", dest="benchmarks", help="drop rows that hold a question of these")

    flag = verb("train", train, "train an adapter")
    flag("--out", type=Path, required=True, help="folder of the run; may be on a mounted drive")
    flag("--minutes", type=float, help="end within so many minutes, learning rate decayed by then")
    flag("--resume", action="store_true", help="go on from the last whole checkpoint in --out")
    flag("--strict", action="store_true", help="a dropped or shortened row is an error")
    add_recipe(flag)

    flag = verb("evaluate", call("evaluate.evaluate.evaluate"), "measure a model with lm-eval")
    flag("--model", default="smollm2", help=f"{recipe.MODELS}, or an exported GGUF (default: %(default)s)")
    flag("--adapter", type=Path, action="append", default=[], dest="adapters", help="a LoRA's folder; repeatable")
    flag("--tasks", type=words, default=",".join(DEFAULT), help="comma-separated (default: %(default)s)")
    flag("--limit", type=int, help="so many items a task; such a record never enters the tables")
    flag("--data-dir", type=Path, help="local copies of the benchmarks, e.g. hellaswag/validation.jsonl.gz")
    flag("--out", type=Path, required=True, help="record to write, NAME.json; or a folder, with one an adapter")

    flag = verb("compare", compare, "compare records: differences, intervals, significance")
    flag("base", type=Path, help="the record of the base model")
    flag("tuned", type=Path, nargs="+", help="records of tuned models")
    flag("--json", action="store_true", help="print JSON instead of a table")

    flag = verb("export", export, "merge an adapter and write GGUF files, or the room as a page that needs no server")
    flag("--run", type=Path, help="folder of a finished run")
    text = "comma-separated; lora: the adapter alone (default: %(default)s)"
    flag("--quant", type=words, default="f16,q8_0", dest="quants", help=text)
    flag("--out", type=Path, help="folder to write")
    flag("--page", type=Path, metavar="DIR", help="write the room as a folder for any static server, too or alone")

    flag = verb("publish", call("publish.publish.publish"), "push a model, its card and the room to the Hub")
    flag("--export", type=Path, required=True, help="folder that `iris export` wrote")
    flag("--repo", required=True, metavar="USER/NAME", help="the model's repository")
    flag("--space", metavar="USER/NAME", help="push the room, too, to this Space")
    flag("--hardware", default="zero-a10g", help="of a new Space: zero-a10g, cpu-basic with PRO, or static")
    flag("--public", action="store_true", help="for everyone to see (default: private)")
    flag("--dry-run", type=Path, metavar="DIR", help="write it to this new folder instead")
    flag("--results", type=Path, default="results", help="records for the card's tables (default: %(default)s)")
    flag("--licence", type=Path, metavar="FILE", help="the text of the base's licence")

    flag = verb("sweep", sweep, "search recipes by held-out loss, with as many workers as you start")
    flag("--out", type=Path, required=True, help="folder of the study; the same again goes on with it")
    flag("--search", default="grid", help="grid (the seed lab's 72 points) or free (default: %(default)s)")
    flag("--over", action="append", default=[], metavar="KEY=A,B|LOW..HIGH", help="search over this field as well")
    flag("--trials", type=int, help="trials of the study, whoever runs them (default: the whole grid)")
    flag("--minutes", type=float, help="end this worker within so many minutes")
    flag("--storage", help="a database's address, for workers on several machines (default: in --out)")
    add_recipe(flag)

    flag = verb("report", call("report.report.report"), "write the tables of README.md and docs/ from the records")
    flag("--results", type=Path, default="results", help="folder of records (default: %(default)s)")
    documents = [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    flag("documents", type=Path, nargs="*", default=documents, help="files to fill (default: README.md and docs/*.md)")
    flag("--check", action="store_true", help="write nothing; fail when anything is out of date")

    flag = verb("poem", poem, "write a poem with a GGUF model")
    flag("theme", help="what it is about")
    flag("--form", default="free", help="haiku, limerick, couplet, quatrain, sonnet or free")
    flag("--model", default="voice", help="a GGUF file, smollm2, or the %(default)s that comes with Iris")
    flag("--as-it-comes", action="store_true", help="do not keep the form line by line")
    flag("--seed", type=int, help="the same seed gives the same poem")

    flag = verb("judge", call("poetry.judge.judge_file"), "say whether a text keeps its form")
    flag("file", help="FILE.txt (one poem), FILE.jsonl[.gz] (rows with `lines` or `text`), or - for stdin")
    flag("--form", help="the form to judge by (default: the row's own, or whichever the poem keeps)")
    flag("--strict", action="store_true", help="by perfect rhymes, syllables and number of lines alone")
    flag("--json", action="store_true", dest="as_json", help="one JSON object a poem")

    flag = verb("doctor", doctor, "say what this machine can do and what is missing, or what memory a training takes")
    flag("--model", help=f"{recipe.MODELS}: how much memory will its training take?")
    flag("--method", default="lora16", help="qlora, dora or lora16 (default: %(default)s)")
    flag("--gpu", default="", help="t4, l4, a100, h100, ..., or GB (default: the one that is here, else a T4)")
    return top


def call(target: str) -> Callable[..., None]:
    """The function `target` ("module.function") of iris, which is imported when it is called."""
    module, _, name = target.rpartition(".")
    return lambda **flags: getattr(import_module(f"iris.{module}"), name)(**flags)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def train(*, out: Path, minutes: float | None, settings: list[str], benchmarks: Path, **flags: Any) -> None:
    options = {name: flags.pop(name) for name in ("resume", "strict")}
    asked = recipe.make(settings, **flags)
    if minutes is not None and minutes <= 0:
        raise InputError(f"--minutes must be above zero, not {minutes}")
    from .model import load

    load.prepare(asked)
    from .train import fit

    fit.fit(asked, out, minutes=minutes, benchmarks=benchmarks, **options)


def sweep(*, out: Path, search: str, over: list[str], settings: list[str], **flags: Any) -> None:
    from .sweep import search_space, sweep

    options = {name: flags.pop(name) for name in ("trials", "minutes", "storage", "benchmarks")}
    fixed = {text.partition("=")[0] for text in settings} | {name for name, value in flags.items() if value is not None}
    sweep(recipe.make(settings, **flags), search_space(search, fixed, over), out, **options)


def export(*, run: Path | None, out: Path | None, quants: list[str], page: Path | None) -> None:
    if (run is None) != (out is None) or not (run or page):
        raise InputError("give --run and --out for GGUF files, --page for the room as a page, or all three")
    if run and out:
        from .export.export import export

        export(run, out, quants)
    if page:
        from .publish.page import export_page

        export_page(page, out)


def compare(*, base: Path, tuned: list[Path], json: bool) -> None:
    from .compare import compare

    found = compare([base, *tuned])
    print(dumps(asdict(found), indent=1) if json else found.table())


def poem(*, theme: str, form: str, model: str, as_it_comes: bool, seed: int | None) -> None:
    from .poetry import poet
    from .space.settings import open_poet

    wish = poet.Wish(theme, form, seed=seed)
    wish.check()  # a mistake is told before the model is loaded
    one = open_poet(model)
    for piece in one.stream(wish) if as_it_comes else one.keep_form(wish):
        if isinstance(piece, str):  # what is only tried for the next line is not shown
            print(piece, end="", flush=True)
    print()


def doctor(*, model: str | None, method: str, gpu: str) -> None:
    from .model import smollm2

    if model:
        from .train.forecast import forecast

        print(forecast(recipe.make(model=model, method=method, data="finetome"), gpu))
        return
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    print(f"disk: {shutil.disk_usage('.').free / 1e9:.0f} GB free here; models are kept in {smollm2.cache()}")
    needed = metadata.requires("iris-poetry-lab") or []
    for extra in ("train", "eval", "gpu", "app"):
        names = [re.split(r"[^\w-]", line)[0] for line in needed if line.endswith(f'extra == "{extra}"')]
        missing = [name for name in names if not any(metadata.distributions(name=name))]
        remedy = f"missing {', '.join(missing)}; pip install -e '.[{extra}]' in Iris' folder" if missing else "ready"
        print(f"{extra}: {remedy}")
    if any(metadata.distributions(name="torch")):
        from .model import hardware

        print(f"device: {hardware.device_name()}, precision {hardware.precision('auto')}")
        if hardware.device() == "cpu":
            print("no GPU: the embedded SmolLM2 trains here in minutes; use lora16 or dora, as qlora needs a GPU")
    from huggingface_hub import get_token

    print(f"Hugging Face login: {'a token is there' if get_token() else 'none, fine for public models'}")
