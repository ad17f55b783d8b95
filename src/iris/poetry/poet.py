"""Poems from a GGUF model on CPU, by llama.cpp's own server inside this process (xllamacpp). No torch here.

The engine batches: several poems in flight share each pass over the weights, so four at once are far cheaper than
four in a row. The prompt is the model's own chat template with its date pinned, as in training.
"""

import os
import queue
import random
import secrets
import signal
import struct
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import InputError, RunError
from .forms import FORMS
from .keep_form import DRAFTS, Draft, Drafts, Ends, compose
from .plan import Likely
from .wish import Poem, Wish

TEMPLATE_DATE = "26 Jul 2024"  # Llama-3.2's template writes today's date into the prompt unless told this, its default
VOICE = Path(__file__).with_name("voice.gguf")  # the adapter that comes with Iris, for the embedded SmolLM2

# Rounds that a waiting thread of the engine spins before it sleeps; OpenMP reads this once, when it is loaded. Two idle
# cores write 51 tokens/s without spinning (SmolLM2, Q4_0), 100 with this, 117 with OpenMP's own 300,000 rounds; beside
# another busy process it is 72, 55 and 45.
SPIN = "300"
ENDS = 8  # end words that are weighed at a time
CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Physical cores this process may use: its CPU affinity without hyperthreads, within a container's CPU quota and
    OMP_NUM_THREADS. With a thread more than there are cores free, the others wait for it at every layer."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    physical = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        physical.add(siblings.read_text() if siblings.exists() else str(cpu))
    count = len(physical)
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroup v2, v1
        files = [CGROUP / name for name in names]
        quota = " ".join(file.read_text() for file in files if file.exists()).split()
        if len(quota) == 2 and quota[0] not in ("max", "-1"):
            count = min(count, round(int(quota[0]) / int(quota[1])))
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        count = min(count, int(wanted))
    return max(1, count)


class Poet:
    """A loaded GGUF model for any number of threads: `n_parallel` poems are written together and a further one waits.
    n_ctx: tokens a poem and its prompt may have together. threads: `cores()` unless given. InputError if the file is
    missing or no GGUF, RunError if the engine cannot load it."""

    def __init__(
        self,
        gguf: str | Path,
        adapter: str | Path | None = None,
        n_parallel: int = 24,
        n_ctx: int = 2048,
        threads: int | None = None,
    ) -> None:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
        import xllamacpp

        self.path = Path(gguf)
        if not self.path.is_file():
            raise InputError(f"there is no model file {gguf}; give the path of a .gguf file")
        with open(self.path, "rb") as handle:
            if handle.read(4) != b"GGUF":
                raise InputError(f"{gguf} is not a GGUF model; give a .gguf file, as `iris export` writes it")
        params = xllamacpp.CommonParams()
        params.model.path = str(self.path)
        params.n_parallel = n_parallel + ENDS  # these for `_end`: the slots that poems find must not depend on it
        params.n_ctx = n_ctx * 8
        params.kv_unified = True
        if adapter is not None:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(adapter), 1.0
            params.lora_adapters = [lora]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or cores()
        params.cache_ram_mib = 0  # the slots keep their last prompts; a cache beside them would only grow
        params.fit_params = False
        params.verbosity = -1
        # The engine always opens an HTTP port on loopback. Nobody is told its number, and nobody knows its key.
        params.port = 0
        params.api_keys = [secrets.token_hex(32)]
        params.endpoint_slots = params.endpoint_props = params.ui = False
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError:
            raise RunError(f"{gguf} could not be loaded: it is damaged or no model for text; fetch it again") from None
        # The engine may be let go only once its loop runs: until then its destructor would wait for ever.
        self._server.handle_completions({"prompt": [1], "n_predict": 1})
        if threading.current_thread() is threading.main_thread():
            # llama.cpp has taken SIGINT and SIGTERM for itself; without this Ctrl-C would never reach Python
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.getsignal(number))
        self._door = threading.Lock()
        self.likely = lru_cache(maxsize=32)(self._next_words)
        self.plans = has_plans(Path(adapter or gguf))
        self._most = n_parallel
        self._free = threading.Semaphore(n_parallel)
        self._weighing, self._ends = ThreadPoolExecutor(ENDS), queue.SimpleQueue[int]()
        for slot in range(n_parallel, n_parallel + ENDS):
            self._ends.put(slot)

    def stream(
        self, wish: Wish, *, max_tokens: int | None = None, left: threading.Event | None = None
    ) -> Generator[str, None, Poem]:
        """Yield the poem piece by piece; the generator's return value is the Poem. Closing it frees the engine after
        the token in work, and so does any thread that sets `left`. max_tokens: by form unless given. InputError for a
        wish that cannot be asked for, RunError if the engine fails."""
        started, text, request = time.perf_counter(), "", wish.request()
        limit = max_tokens or FORMS[wish.form].tokens * (2 if wish.length == "long" else 1)
        asked = Drafts(request, seed=wish.seed, temperature=wish.temperature, max_tokens=limit)
        with closing(self._write(asked, left)) as growing:
            for (draft,) in growing:
                if piece := draft.text[len(text) :]:
                    text = draft.text
                    yield piece
        return Poem.of(text, wish.form, draft.ended is True, draft.tokens, started)

    def keep_form(self, wish: Wish, *, left: threading.Event | None = None) -> Generator[str | Draft, None, Poem]:
        """As `stream`, but in the wish's form, as keep_form.py composes. Text that is yielded stays; a Draft shows what
        is being tried after it, in place of the Draft before. Free verse has no form to keep and is streamed as it
        comes. The Poem's `tokens` count those of all drafts."""
        wish.check()
        if wish.form == "free":
            return (yield from self.stream(wish, left=left))
        started, text, tokens = time.perf_counter(), "", 0
        composing = compose(wish, self.plans, min(DRAFTS, self._most))
        answer: Any = None
        while not (left and left.is_set()):
            try:
                asked = composing.send(answer)
            except StopIteration:
                return Poem.of(text, wish.form, True, tokens, started)
            answer = None
            if isinstance(asked, str):
                text += asked
                yield asked
            elif isinstance(asked, Likely):
                answer = self.likely(asked.prompt)
            elif isinstance(asked, Ends):
                answer = list(self._weighing.map(self._end, *zip(*asked.lines, strict=True)))
            else:
                with closing(self._write(asked, left)) as growing:
                    for answer in growing:
                        yield Draft(asked.shown + answer[0].text)
                tokens += sum(draft.tokens for draft in answer)
        return Poem.of(text, wish.form, False, tokens, started)

    def _next(self, text: str, **options: Any) -> dict[str, Any]:
        """What the engine tells of the next token after a text, which is no chat; empty if it fails."""
        body = {"prompt": text, "n_predict": 1, "temperature": 0.0, "cache_prompt": False}
        answer = self._server.handle_completions(body | options)
        return answer["choices"][0]["logprobs"]["content"][0] if "choices" in answer else {}

    def _next_words(self, prompt: str) -> dict[str, float]:
        """The answer to a Likely; empty if the engine fails."""
        with self._slots(1):
            top = self._next(prompt, n_probs=4000).get("top_logprobs", ())
        return {token["token"][1:]: token["logprob"] for token in top if token["token"].startswith(" ")}

    def _end(self, before: str, word: str) -> float:
        """Of the answer to an Ends one line's: of a word of several tokens the first counts."""
        # leaned towards far enough that it comes; what the engine tells is how likely it was before that
        slot = self._ends.get()
        try:
            told = self._next(before, n_probs=1, logit_bias=[[f" {word}", 100.0]], id_slot=slot)
        finally:
            self._ends.put(slot)
        return told.get("logprob", 0.0)

    @contextmanager
    def _slots(self, count: int) -> Iterator[None]:
        """So many of the engine's slots, once they are free."""
        with self._door:  # one at a time, or two that need several slots could each hold half and wait for ever
            for _ in range(count):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(count)

    def recite(self, wish: Wish, *, keep_form: bool = True, max_tokens: int | None = None) -> Poem:
        """The whole poem at once, line by line in its form, or as it comes if `keep_form` is false or `max_tokens` are
        given. Errors as in `stream`."""
        pieces = self.stream(wish, max_tokens=max_tokens) if max_tokens or not keep_form else self.keep_form(wish)
        while True:
            try:
                next(pieces)
            except StopIteration as stop:
                return stop.value

    def _write(self, asked: Drafts, left: threading.Event | None) -> Generator[list[Draft], None, None]:
        """The answer to a Drafts; yields it at once, still empty, and whenever a draft has grown. Ends when all
        are done, or after the token in work once `left` is set."""
        several = asked.count > 1
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": asked.message}],
            "chat_template_kwargs": {"date_string": TEMPLATE_DATE},
            "n": asked.count,
            "seed": random.getrandbits(31) if asked.seed is None else asked.seed,
            "temperature": asked.temperature,
            "max_tokens": asked.max_tokens,
            "stop": list(asked.stop),
            "ignore_eos": not asked.may_end,
            "logit_bias": [[f" {word}", value] for word, value in asked.bias.items()],
            "repeat_penalty": 1.1,  # a small model left alone repeats one line for ever
            "repeat_last_n": 256,
            "cache_prompt": False,  # what another poem left in a slot would round, and so draw, in another way
            "stream": True,
            "stream_options": {"include_usage": not several},
        }
        if asked.scored:
            body |= {"logprobs": True, "top_logprobs": 1}
        if asked.before:
            body["messages"].append({"role": "assistant", "content": asked.before})
        drafts = [Draft() for _ in range(asked.count)]
        settled: set[int] = set()
        arrived: queue.SimpleQueue[dict | Exception | None] = queue.SimpleQueue()
        closed = threading.Event()

        def gone() -> bool:
            return closed.is_set() or (left is not None and left.is_set())

        def receive(chunk: dict) -> bool:  # True tells the engine to drop the request
            arrived.put(chunk)
            return gone()

        def work() -> None:
            outcome = None
            try:
                with self._slots(len(drafts)):
                    if not gone():
                        self._server.handle_chat_completions(body, receive)
            except Exception as error:  # whatever it was, the waiting side has to hear of it
                outcome = error
            arrived.put(outcome)

        threading.Thread(target=work, daemon=False).start()
        try:
            yield drafts
            while (chunk := arrived.get()) is not None:
                if isinstance(chunk, Exception) or "choices" not in chunk:
                    raise RunError(f"the engine could not write this poem ({chunk}); try again")
                for choice in chunk["choices"]:
                    draft = drafts[choice["index"]]
                    if piece := choice["delta"].get("content"):
                        draft.text += piece
                        draft.tokens += 1
                        told = (choice.get("logprobs") or {}).get("content") or ()
                        draft.likely.append((len(draft.text), sum(token["logprob"] for token in told), len(told)))
                    if choice["finish_reason"]:
                        draft.ended = choice["finish_reason"] == "stop"
                    elif several and "\n" in (piece or "") and asked.settled(draft.text) is not None:
                        settled.add(choice["index"])
                if "usage" in chunk and not several:
                    drafts[0].tokens = chunk["usage"]["completion_tokens"]
                yield drafts
                if settled and all(draft.ended is not None or i in settled for i, draft in enumerate(drafts)):
                    return
        finally:
            closed.set()


def has_plans(file: Path) -> bool:
    """Whether a GGUF says by its key `iris.plans` that the model was taught to land on end words that are named."""
    with open(file, "rb") as handle:
        head = handle.read(1 << 25)  # metadata comes first; no reader of it is among the app's requirements
    key = struct.pack("<Q10sI", 10, b"iris.plans", 7)  # the key's length, the key, the type bool
    return key in head and head[head.index(key) + len(key)] == 1
