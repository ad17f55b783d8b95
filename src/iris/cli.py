"""The command line: one verb a module. Heavy imports happen inside the verbs, so that --help answers at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from . import __version__, distributed, recipe
from .errors import InputError, RunError

BENCHMARKS = "hellaswag,arc_challenge,mmlu_stem,truthfulqa_mc2"
LAST_WORDS = 3.0  # seconds for the launcher of several processes to end those that only fail because another did
MODELS = "smollm2, llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, a Hub id or a folder"


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
        args = parser().parse_args([word for word in argv if word != "--debug"])
        args.words = argv
        args.verb(args)
        return 0
    except (InputError, RunError) as error:
        if debug:
            raise
        if distributed.rank():  # if the first process says the same, the launcher ends this one meanwhile
            time.sleep(LAST_WORDS)
        print(f"iris: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("iris: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `iris ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if distributed.size() > 1:
            time.sleep(2 * LAST_WORDS if distributed.rank() else LAST_WORDS)
        first_line = (str(error).splitlines() or [""])[0]
        print(f"iris: {type(error).__name__}: {first_line} (run again with --debug for the trace)", file=sys.stderr)
        return 1


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="iris", description="Fine-tune a small open model, prove whether it got better, hear it recite.")
    top.add_argument("--version", action="version", version=f"iris {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        one.add_argument("--debug", action="store_true", help="show the trace of an error")
        one.set_defaults(verb=function)
        return one

    one = verb("demo", demo, "the whole loop on this machine: train, evaluate, compare, export, recite")
    one.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run (default: %(default)s)")
    one.add_argument("--max-steps", type=int, help="train for so many steps only")
    one.add_argument("--limit", type=int, help="evaluate on so many items only")
    one.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the records (default: %(default)s)"
    )

    one = verb("train", train, "train an adapter")
    one.add_argument("--model", default="smollm2", help=f"{MODELS} (default: %(default)s)")
    one.add_argument("--method", default="lora16", help=f"one of {', '.join(recipe.METHODS)} (default: %(default)s)")
    one.add_argument("--data", default="verses", help="verses, finetome, fusechat, nitral, a Hub id or a file")
    one.add_argument("--out", type=Path, required=True, help="folder of the run; may be on a mounted drive")
    one.add_argument("--max-steps", type=int, help="optimizer steps (default: whole epochs)")
    one.add_argument("--minutes", type=float, help="end within so many minutes, learning rate decayed by then")
    one.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --out")
    one.add_argument("--seed", type=int, help="seed of data order and adapter")
    one.add_argument("--gpus", type=int, default=1, help="train on so many of this host (processes, without a GPU)")
    one.add_argument("--on", choices=["hf-jobs"], help="run on a machine rented from Hugging Face Jobs")
    one.add_argument("--flavor", help="which machine to rent, such as a10g-small")
    one.add_argument(
        "--repo", metavar="USER/NAME", help="private Hub repository for a rented machine's data and results"
    )
    one.add_argument("--timeout", type=float, default=120, help="minutes to rent it at most (default: %(default)s)")
    one.add_argument("--dry-run", action="store_true", help="print the job and send nothing")
    one.add_argument("--strict", action="store_true", help="a dropped or shortened row is an error")
    one.add_argument("--data-dir", type=Path, help="folder of benchmark files whose questions must not be trained on")
    one.add_argument("--set", action="append", metavar="KEY=VALUE", help="any field of the recipe; may be repeated")

    one = verb("evaluate", evaluate, "measure a model with lm-eval")
    one.add_argument("--model", default="smollm2", help=f"{MODELS}, or an exported GGUF (default: %(default)s)")
    one.add_argument("--adapter", type=Path, help="folder of a trained adapter")
    one.add_argument("--tasks", default=f"{BENCHMARKS},poetry", help="comma-separated (default: %(default)s)")
    one.add_argument("--limit", type=int, help="so many items a task; such a record never enters the tables")
    one.add_argument("--data-dir", type=Path, help="local copies of the benchmarks, e.g. hellaswag/validation.jsonl.gz")
    one.add_argument("--gpus", type=int, default=1, help="share the items among so many of this host")
    one.add_argument("--out", type=Path, required=True, help="the record to write, results/NAME.json")

    one = verb("compare", compare, "compare records: differences, intervals, significance")
    one.add_argument("base", type=Path, help="the record of the base model")
    one.add_argument("tuned", type=Path, nargs="+", help="records of tuned models")
    one.add_argument("--json", action="store_true", help="print JSON instead of a table")

    one = verb("export", export, "merge an adapter and write GGUF files")
    one.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    one.add_argument("--quant", default="f16,q8_0", help="comma-separated (default: %(default)s)")
    one.add_argument("--out", type=Path, required=True, help="folder to write")

    one = verb("publish", publish, "push an exported model, its card and the poetry room to the Hugging Face Hub")
    one.add_argument("--export", type=Path, required=True, help="folder that `iris export` wrote")
    one.add_argument("--repo", required=True, metavar="USER/NAME", help="the model's repository")
    one.add_argument("--space", metavar="USER/NAME", help="push the room, too, to this Space")
    one.add_argument("--public", action="store_true", help="for everyone to see (default: private)")
    one.add_argument("--dry-run", type=Path, metavar="DIR", help="write it to this new folder instead")
    one.add_argument(
        "--results", type=Path, default=Path("results"), help="records for the card's tables (default: %(default)s)"
    )
    one.add_argument("--licence", type=Path, metavar="FILE", help="the text of the base's licence")

    one = verb("speed", speed, "measure speed on random weights of the Llama-3 shapes")
    one.add_argument("what", choices=["train", "infer"], help="train: on this GPU; infer: GGUF on this machine's cores")
    one.add_argument("--tokenizer", type=Path, required=True, help="folder of a Llama-3 tokenizer")
    one.add_argument("--shapes", default="1b", help="comma-separated, of 1b, 3b, 8b (default: %(default)s)")
    one.add_argument("--methods", default=",".join(recipe.METHODS), help="comma-separated (default: %(default)s)")
    one.add_argument("--steps", type=int, default=30, help="optimizer steps a run (default: %(default)s)")
    one.add_argument("--set", action="append", metavar="KEY=VALUE", help="any field of the recipe; may be repeated")
    one.add_argument(
        "--peer", action="append", metavar="MODE", help="a mode of bench/peer_training.py, run beside ours"
    )
    one.add_argument("--as-t4", action="store_true", help="imitate a T4: no bf16, no FlashAttention, 15 GB")
    one.add_argument("--out", type=Path, required=True, help="the record to write, results/NAME.json")

    one = verb("sweep", sweep, "search recipes by held-out loss, with as many workers as you start")
    one.add_argument("--model", default="smollm2", help=f"{MODELS} (default: %(default)s)")
    one.add_argument("--method", default="lora16", help=f"one of {', '.join(recipe.METHODS)} (default: %(default)s)")
    one.add_argument("--data", default="verses", help="verses, finetome, fusechat, nitral, a Hub id or a file")
    one.add_argument("--out", type=Path, required=True, help="folder of the study; the same again goes on with it")
    one.add_argument("--search", default="grid", help="grid (the seed lab's 72 points) or free (default: %(default)s)")
    one.add_argument("--over", action="append", metavar="KEY=A,B|LOW..HIGH", help="search over this field as well")
    one.add_argument("--trials", type=int, help="trials of the study, whoever runs them (default: the whole grid)")
    one.add_argument("--minutes", type=float, help="end this worker within so many minutes")
    one.add_argument("--storage", help="a journal file on a shared disk or a database's URL (default: in --out)")
    one.add_argument("--pruner", default="median", help="median, halving or none (default: %(default)s)")
    one.add_argument("--max-steps", type=int, help="optimizer steps a trial (default: whole epochs)")
    one.add_argument("--seed", type=int, help="seed of data order and adapter")
    one.add_argument("--data-dir", type=Path, help="folder of benchmark files whose questions must not be trained on")
    one.add_argument("--set", action="append", metavar="KEY=VALUE", help="any field of the recipe; may be repeated")

    one = verb("report", report, "write the README's tables and the pictures from the records")
    one.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: %(default)s)")
    one.add_argument("--readme", type=Path, default=Path("README.md"), help="the file to fill (default: %(default)s)")
    one.add_argument("--check", action="store_true", help="write nothing; fail when anything is out of date")

    one = verb("poem", poem, "write a poem with a GGUF model")
    one.add_argument("theme", help="what it is about")
    one.add_argument("--form", default="free", help="haiku, limerick, couplet, quatrain, sonnet or free")
    one.add_argument("--model", type=Path, help="a GGUF file (default: the embedded SmolLM2)")
    one.add_argument("--seed", type=int, help="the same seed gives the same poem")

    one = verb("judge", judge, "say whether a text keeps its form")
    one.add_argument("file", help="FILE.txt (one poem), FILE.jsonl[.gz] (rows with `lines` or `text`), or - for stdin")
    one.add_argument("--form", help="the form to judge by (default: the row's own, or whichever the poem keeps)")
    one.add_argument("--json", action="store_true", help="one JSON object a poem")

    verb("doctor", doctor, "say what this machine can do and what is missing")
    return top


def demo(args: argparse.Namespace) -> None:
    from . import demo as module

    module.run(args.out, args.results, args.max_steps, args.limit)


def train(args: argparse.Namespace) -> None:
    asked = recipe.make(
        args.set, model=args.model, method=args.method, data=args.data, max_steps=args.max_steps, seed=args.seed
    )
    if args.minutes is not None and args.minutes <= 0:
        raise InputError(f"--minutes must be above zero, not {args.minutes}")
    if args.on:
        from . import jobs

        jobs.train(asked, args)
        return
    if args.flavor or args.repo or args.dry_run:
        raise InputError("--flavor, --repo and --dry-run go with --on hf-jobs")
    if args.gpus != 1 and distributed.size() == 1:
        train_together(asked, args)
        return
    from . import model

    model.prepare(asked)
    from . import train as module

    module.fit(asked, args.out, resume=args.resume, minutes=args.minutes, strict=args.strict, benchmarks=args.data_dir)


def train_together(asked: recipe.Recipe, args: argparse.Namespace) -> None:
    """The same command in a process a GPU. RunError with what is kept if one is killed."""
    from . import checkpoints

    distributed.share(asked.batch_size, args.gpus)
    if asked.engine != "peft":
        raise InputError("several GPUs need engine=peft")
    try:
        distributed.launch(args.words, args.gpus)
    except RunError as error:
        print(file=sys.stderr)  # the progress bar was left as it was
        kept = checkpoints.last(args.out)
        told = f"{kept.name} is kept, add --resume to the same command to go on" if kept else "no checkpoint was kept"
        raise RunError(f"{error}; {told}") from None


def evaluate(args: argparse.Namespace) -> None:
    from . import evaluate as module

    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()]
    module.evaluate(
        args.model, args.adapter, tasks, args.out, limit=args.limit, data_dir=args.data_dir, processes=args.gpus
    )


def compare(args: argparse.Namespace) -> None:
    from . import compare as module

    found = module.compare([args.base, *args.tuned])
    print(json.dumps(found.as_dict(), indent=1) if args.json else found.table())


def export(args: argparse.Namespace) -> None:
    from . import export as module

    module.export(args.run, args.out, [quant.strip() for quant in args.quant.split(",") if quant.strip()])


def publish(args: argparse.Namespace) -> None:
    from . import publish as module

    module.publish(args.export, args.repo, args.space, args.public, args.dry_run, args.results, args.licence)


def speed(args: argparse.Namespace) -> None:
    if args.what == "infer":
        from . import inference

        inference.infer_speed(args.shapes.split(","), args.tokenizer, args.out)
        return
    from . import speed as module

    module.train_speed(
        args.shapes.split(","),
        args.methods.split(","),
        args.tokenizer,
        args.out,
        steps=args.steps,
        settings=args.set,
        peers=args.peer,
        as_t4=args.as_t4,
    )


def sweep(args: argparse.Namespace) -> None:
    asked = recipe.make(
        args.set, model=args.model, method=args.method, data=args.data, max_steps=args.max_steps, seed=args.seed
    )
    from . import sweep as module

    module.sweep(
        asked,
        module.search_space(args.search, args.set, args.over),
        args.out,
        trials=args.trials,
        minutes=args.minutes,
        storage=args.storage,
        pruner=args.pruner,
        benchmarks=args.data_dir,
    )


def report(args: argparse.Namespace) -> None:
    from . import report as module

    module.report(args.results, args.readme, args.check)


def poem(args: argparse.Namespace) -> None:
    from . import embedded, poet

    poet.request(args.theme, args.form)  # a mistake is told before the model is loaded
    written = poet.Poet(args.model or embedded.gguf()).stream(args.theme, args.form, seed=args.seed)
    for piece in written:
        print(piece, end="", flush=True)
    print()


def judge(args: argparse.Namespace) -> None:
    from . import judge as module

    module.judge_file(args.file, args.form, args.json)


def doctor(args: argparse.Namespace) -> None:
    from . import doctor as module

    module.examine()


if __name__ == "__main__":
    sys.exit(main())
