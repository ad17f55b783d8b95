"""Engines side by side on this machine's cores: one random model of Llama-3.2-1B's shape, 256 tokens in, 64 out.

    python bench/engines.py --tokenizer DIR --out results/speed-engines.json [--llama-cpp-python PYTHON]

xllamacpp is the wheel as it comes; transformers runs the same shape in bf16; PYTHON is the interpreter of another
environment where llama-cpp-python was built from source, say with AVX-512 but without AMX:
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=ON
-DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON -DGGML_AVX512_VBMI=ON" pip install llama-cpp-python==0.3.36
Each engine gets a process of its own, one after the other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from iris import inference, record, speed
from iris.poet import cores

LLAMA_CPP_PYTHON = """
import json, random, sys, time
from llama_cpp import Llama
began = time.perf_counter()
threads = int(sys.argv[2])
llama = Llama(sys.argv[1], n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
told, best = {"load_seconds": round(time.perf_counter() - began, 2)}, [0, 0]
for _ in range(3):
    llama.reset()
    began = time.perf_counter()
    llama.eval(random.choices(range(1000, 20000), k=256))
    read = time.perf_counter()
    for _ in range(64):
        llama.eval([llama.sample(temp=0)])
    best = [max(best[0], 256 / (read - began)), max(best[1], 64 / (time.perf_counter() - read))]
told["prompt_tokens_per_s"], told["generation_tokens_per_s"] = (round(each, 1) for each in best)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps(told | {"peak_memory_gb": round(int(peak.split()[1]) * 1024 / 1e9, 3)}))
"""

TRANSFORMERS = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM
from iris import record
torch.set_num_threads(int(sys.argv[2]))
began = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
told, best = {"load_seconds": round(time.perf_counter() - began, 2)}, [0, 0]
for _ in range(3):
    ids = torch.randint(1000, 20000, (1, 256))
    times = []
    for new in (1, 65):
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=new, max_new_tokens=new,
                           do_sample=False, pad_token_id=0)
        times.append(time.perf_counter() - began)
    best = [max(best[0], 256 / times[0]), max(best[1], 64 / (times[1] - times[0]))]
told["prompt_tokens_per_s"], told["generation_tokens_per_s"] = (round(each, 1) for each in best)
print(json.dumps(told | {"peak_memory_gb": record.peak_memory_gb()}))
"""


def fresh(python: str, code: str, model: Path) -> dict[str, float]:
    done = subprocess.run([python, "-c", code, str(model), str(cores())], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the engine failed with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--llama-cpp-python", metavar="PYTHON")
    args = parser.parse_args()
    bandwidth, rows = inference.read_bandwidth(), []

    def add(who: str, quant: str, size: int, told: dict[str, float]) -> None:
        share = round(told["generation_tokens_per_s"] * size / 1e9 / bandwidth, 3)
        rows.append({"who": who, "quant": quant, "file_gb": round(size / 1e9, 3)} | told | {"bandwidth_ratio": share})
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        for quant in inference.QUANTS:
            folder = Path(scratch) / quant
            folder.mkdir()
            path = inference.write_random("1b", quant, args.tokenizer, folder)
            size = path.stat().st_size
            add("xllamacpp", quant, size, inference.in_fresh_process(path))
            if args.llama_cpp_python:
                add("llama-cpp-python, AVX-512", quant, size, fresh(args.llama_cpp_python, LLAMA_CPP_PYTHON, path))
            path.unlink()
        model = speed.make_model("1b", args.tokenizer, Path(scratch) / "model")
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        add("transformers", "bf16", size, fresh(sys.executable, TRANSFORMERS, model))
    result = record.Record("speed", args.out.stem, {"id": "random weights, Llama-3 shapes: 1b"}, "finished")
    result.settings = {"device": f"{cores()} cores", "prompt_tokens": 256, "written_tokens": 64}
    result.measures = {"rows": rows, "bandwidth_gb_per_s": round(bandwidth, 1)}
    record.write(result, args.out)


if __name__ == "__main__":
    main()
