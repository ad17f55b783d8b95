"""One GPU beside two of the same host: training (DDP on the 1B shape, FSDP on the 8B), checkpoints that change hands, a
killed process, evaluation. Random weights of the Llama-3 shapes; one record with a row a part, written after each.

    python bench/scale.py --tokenizer DIR --data-dir DIR --out results/speed/scale-2gpu.json

Training runs on one GPU go two at a time, one on each. Parts, in this order: 1b and 8b (speed, loss, memory), kill
(and resume on one GPU), resume (on two), evaluate, qlora (8b, 4-bit), evaluate-8b. They take 20 minutes on two H100s;
a second call with the same --out adds its --parts to the record, and with the same --scratch it finds the models there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iris import benchmarks, checkpoints, hardware, record, speed

PARTS = ("1b", "8b", "kill", "resume", "evaluate", "qlora", "evaluate-8b")
TASKS = list(benchmarks.DATA)
BEGAN = time.monotonic()
QUICK = ["lr_scheduler_type=constant", "save_steps=10", "compile=false"]  # the runs that are killed and resumed


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.scratch = args, args.scratch
        self.rows: list[dict[str, Any]] = []
        if args.out.exists():  # a second call adds the parts that the first had no time for
            self.rows = [
                row
                for row in record.read(args.out).measures["rows"]
                if row["part"].removesuffix("-again") not in args.parts
            ]

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", flush=True)

    def keep(self, part: str, **row: Any) -> None:
        """Add a row and write the record as it stands."""
        self.rows.append({"part": part} | row)
        self.say(json.dumps({key: value for key, value in self.rows[-1].items() if "losses" not in key}))
        result = record.Record(
            kind="speed",
            name=self.args.out.stem,
            status="finished",
            model={"id": "random weights, Llama-3 shapes: 1b, 8b", "revision": None, "digest": None},
            settings={"device": hardware.device_name(), "tiny": self.args.tiny},
            measures={"rows": self.rows},
        )
        record.write(result, self.args.out)

    def attempt(self, part: str, work: Callable[[], None]) -> None:
        """One part; what goes wrong in it is told, and the next begins."""
        if part not in self.args.parts:
            return
        self.say(f"part {part}")
        try:
            work()
        except Exception:
            print(traceback.format_exc()[-3000:], flush=True)

    # --- commands -----------------------------------------------------------------------------------------------------

    def environment(self, gpus: tuple[int, ...]) -> dict[str, str]:
        return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)), "TQDM_MININTERVAL": "5"}

    def run(self, words: list[str], *gpus: int) -> float:
        """A command on these GPUs; its seconds. Its end is printed if it fails."""
        begin = time.monotonic()
        done = subprocess.run([sys.executable, *words], env=self.environment(gpus), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=560)  # fmt: skip
        seconds = time.monotonic() - begin
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2500:]}")
        self.say(f"{seconds:.0f} s on GPU {gpus}: {' '.join(words[2:])[:150]}")
        return seconds

    def command(self, name: str, shape: str, method: str, batch: int, steps: int, *more: str) -> list[str]:
        words = ["-m", "iris", "train", "--model", str(self.model(shape)), "--method", method]
        words += ["--out", str(self.at(name)), "--data", str(self.scratch / "rows.jsonl")]
        words += ["--max-steps", str(steps), "--set", f"batch_size={batch}"]
        tiny = ["max_length=128", "precision=fp32", "optim=adamw_torch"] if self.args.tiny else []
        return [*words, *sets(tiny), *more]

    def train(self, name: str, shape: str, method: str, batch: int, steps: int, gpus: tuple[int, ...],
              *more: str) -> dict[str, Any]:  # fmt: skip
        """A training run; its measures and plan."""
        words = self.command(name, shape, method, batch, steps, *more)
        self.run([*words, *(["--gpus", str(len(gpus))] if len(gpus) > 1 else [])], *gpus)
        made = record.read(self.at(name) / "record.json")
        return made.measures | {"plan": made.settings["plan"], "gpus": len(gpus)}

    def at(self, name: str) -> Path:
        return self.scratch / name

    def model(self, shape: str) -> Path:
        return self.scratch / f"llama-{shape}-random"

    def make(self, shape: str, gpu: int) -> None:
        """The model, in a process of its own that leaves the GPU empty."""
        if not (self.model(shape) / "tokenizer.json").exists() or not list(self.model(shape).glob("*.safetensors")):
            self.run([__file__, "--make", shape, *self.args.given], gpu)

    def parallel(self, *work: Callable[[], Any]) -> list[Any]:
        """Each at the same time; raises what went wrong when all have ended."""
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(one) for one in work]
        return [one.result() for one in waiting]

    # --- parts --------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """The rows and models, and beside the making of the larger one the 1B's run on one GPU."""
        rows = self.scratch / "rows.jsonl"
        if not rows.exists():
            count = 300 if self.args.tiny else int(self.args.batch * self.args.steps * 2048 / 540) + 50
            speed.make_rows(self.args.tokenizer, rows, count)
        self.alone: dict[str, Any] = {}

        def prepare_1b() -> None:
            if {"1b", "kill", "resume", "evaluate"} & set(self.args.parts):
                self.make("1b", 0)
            if "1b" in self.args.parts:
                self.alone = self.train("1b-1", "1b", "lora16", self.args.batch, self.args.steps, (0,))

        def prepare_8b() -> None:
            if {"8b", "qlora", "evaluate-8b"} & set(self.args.parts):
                self.make("8b", 1)

        self.parallel(prepare_1b, prepare_8b)

    def compare(self, part: str, shape: str, method: str, one: dict[str, Any], two: dict[str, Any]) -> None:
        names = ["steady_tokens_per_s", "tokens_per_s", "step_seconds", "tokens", "peak_memory_gb", "plan", "gpus"]
        names.append("losses")
        pairs = list(zip(one["losses"], two["losses"], strict=True))
        self.keep(
            part,
            shape=shape,
            method=method,
            steps=len(pairs),
            runs=[{name: run[name] for name in names} for run in (one, two)],
            loss_difference=max(abs(a - b) for a, b in pairs),
            speed_ratio=round(two["steady_tokens_per_s"] / one["steady_tokens_per_s"], 3),
            memory_ratio=round(two["peak_memory_gb"] / one["peak_memory_gb"], 3),
        )

    def ddp(self) -> None:
        """1B, 16-bit LoRA, effective batch 64."""
        two = self.train("1b-2", "1b", "lora16", self.args.batch, self.args.steps, (0, 1))
        self.compare("1b", "1b", "lora16", self.alone, two)

    def spread(self, name: str, method: str, batch: int, steps: int, length: int, *gpus: int) -> dict[str, Any]:
        """8B, 8,192 tokens at a time on one GPU or on both together, which spread the base."""
        micro = [f"max_length={length}", f"micro_batch={8192 // length // len(gpus)}"]
        settings = [*([] if self.args.tiny else micro), "compile=true", "fsdp=true"]
        return self.train(name, "8b", method, batch, steps, gpus, *sets(settings))

    def fsdp(self) -> None:
        """8B, 16-bit LoRA; on one GPU twice, which tells how far two runs of the same differ."""
        given = ("lora16", self.args.batch, self.args.steps, 1024)  # half the recipe's length, for the sake of time
        one, again = self.parallel(lambda: self.spread("8b-1", *given, 0), lambda: self.spread("8b-again-1", *given, 1))
        two = self.spread("8b-2", *given, 0, 1)
        self.compare("8b", "8b", "lora16", one, two)
        self.compare("8b-again", "8b", "lora16", one, again)

    def qlora(self) -> None:
        """The same with a base of 4 bits."""
        one = self.spread("qlora-1", "qlora", 4, 6, 2048, 0)
        two = self.spread("qlora-2", "qlora", 4, 6, 2048, 0, 1)
        self.compare("qlora", "8b", "qlora", one, two)

    def kill(self) -> None:
        """A process of two is killed after a checkpoint; one GPU goes on from it."""
        settings = sets(QUICK)
        words = self.command("killed", "1b", "lora16", 8, 100000, *settings, "--gpus", "2")
        errors = self.at("killed.txt")
        with open(errors, "w") as handle:
            run = subprocess.Popen([sys.executable, *words], env=self.environment((0, 1)), stderr=handle,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
            while not (self.at("killed") / "checkpoint-10" / checkpoints.MANIFEST).exists():
                if run.poll() is not None or time.monotonic() - BEGAN > 600:
                    run.kill()
                    raise RuntimeError("it ended before it could be killed:\n" + errors.read_text()[-2500:])
                time.sleep(0.01)
            os.kill(worker(self.at("killed"), 1), signal.SIGKILL)
            begin = time.monotonic()
            try:
                run.wait(90)
            finally:
                run.kill()
        seconds = round(time.monotonic() - begin, 2)
        told = errors.read_text().strip().splitlines()[-1]
        kept = checkpoints.last(self.at("killed"))
        self.keep("kill", seconds=seconds, exit_code=run.returncode, sentence=told, checkpoint=kept and kept.name)
        assert kept
        steps = int(kept.name.split("-")[1]) + 10
        ours = ("lora16", 8, steps)
        on_one, whole = self.parallel(
            lambda: self.train("killed", "1b", *ours, (0,), *settings, "--resume"),
            lambda: self.train("whole", "1b", *ours, (1,), *settings),
        )
        self.continued("two GPUs, then one", on_one, whole, steps - 10)

    def continued(self, who: str, resumed: dict[str, Any], whole: dict[str, Any], at: int) -> None:
        pairs = list(zip(resumed["losses"], whole["losses"], strict=True))
        self.keep(
            "kill" if "then one" in who else "resume",
            who=who,
            resumed_at_step=at,
            steps=len(pairs),
            loss_difference=max(abs(a - b) for a, b in pairs),
            losses=pairs,
        )

    def resume(self) -> None:
        """The checkpoint of one GPU goes on on two; needs the part `kill`."""
        settings = sets(QUICK)
        whole = record.read(self.at("whole") / "record.json")
        self.at("resumed").mkdir()
        shutil.copytree(self.at("whole") / "checkpoint-10", self.at("resumed") / "checkpoint-10")
        shutil.copy(self.at("whole") / "record.json", self.at("resumed"))
        got = self.train("resumed", "1b", "lora16", 8, whole.measures["steps"], (0, 1), *settings, "--resume")
        self.continued("one GPU, then two", got, whole.measures, 10)

    def evaluate(self, part: str = "evaluate", shape: str = "1b") -> None:
        """The four complete benchmarks."""
        each: list[dict[str, Any]] = []
        for gpus in ((0,), (0, 1)):
            out = self.at(f"{part}-{len(gpus)}") / "scores.json"
            words = ["-m", "iris", "evaluate", "--model", str(self.model(shape)), "--tasks", ",".join(TASKS)]
            words += ["--data-dir", self.args.data_dir, "--out", str(out), "--gpus", str(len(gpus))]
            words += ["--limit", "4"] if self.args.tiny else []
            seconds = self.run(words, *gpus)
            tasks = record.read(out).tasks
            told = {task: {key: tasks[task][key] for key in ("value", "n", "seconds")} for task in TASKS}
            each.append({"gpus": len(gpus), "seconds": round(seconds, 1), "tasks": told})
        one, two = each
        inside = [sum(task["seconds"] for task in run["tasks"].values()) for run in each]
        self.keep(
            part,
            shape=shape,
            runs=each,
            speed_ratio=round(one["seconds"] / two["seconds"], 3),
            speed_ratio_of_tasks=round(inside[0] / inside[1], 3),
            score_difference=max(abs(one["tasks"][t]["value"] - two["tasks"][t]["value"]) for t in TASKS),
            same_n=all(one["tasks"][t]["n"] == two["tasks"][t]["n"] for t in TASKS),
        )


def sets(settings: list[str]) -> list[str]:
    """The words of a command that set these fields of the recipe."""
    return [word for setting in settings for word in ("--set", setting)]


def worker(out: Path, rank: int) -> int:
    """The process of this rank that trains into `out`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise RuntimeError(f"no process of rank {rank} trains into {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="folder for models and runs (default: a temporary one)")
    parser.add_argument("--tiny", action="store_true", help="two-layer models, few steps: does the script work?")
    parser.add_argument("--make", metavar="SHAPE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.parts, args.batch, args.steps = args.parts.split(","), 64, 30
    if args.tiny:
        args.batch, args.steps = 8, 4
        for shape in speed.SHAPES.values():
            shape |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
                      "head_dim": 8}  # fmt: skip
    if args.make:
        speed.make_model(args.make, args.tokenizer, args.scratch / f"llama-{args.make}-random")
        return
    with tempfile.TemporaryDirectory() as temporary:
        args.scratch = args.scratch or Path(temporary)
        args.scratch.mkdir(parents=True, exist_ok=True)
        for run in [*args.scratch.glob("*-[12]"), *map(args.scratch.joinpath, ("killed", "whole", "resumed"))]:
            shutil.rmtree(run, ignore_errors=True)  # of an earlier call
        args.given = ["--tokenizer", str(args.tokenizer), "--data-dir", args.data_dir, "--out", str(args.out)]
        args.given += ["--scratch", str(args.scratch), *(["--tiny"] if args.tiny else [])]
        bench = Bench(args)
        try:
            bench.prepare()
        except Exception:
            print(traceback.format_exc()[-3000:], flush=True)
        bench.attempt("1b", bench.ddp)
        bench.attempt("8b", bench.fsdp)
        bench.attempt("kill", bench.kill)
        bench.attempt("resume", bench.resume)
        bench.attempt("evaluate", bench.evaluate)
        bench.attempt("qlora", bench.qlora)
        bench.attempt("evaluate-8b", lambda: bench.evaluate("evaluate-8b", "8b"))
        bench.say("done")


if __name__ == "__main__":
    main()
