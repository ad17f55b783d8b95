"""Poems from a GGUF model on CPU, by llama.cpp's own server inside this process (xllamacpp). No torch here.

The engine batches: several poems in flight share each pass over the weights, so four at once are far cheaper than
four in a row. The prompt is the model's own chat template with its date pinned, as in training.
"""

from __future__ import annotations

import os
import queue
import random
import re
import secrets
import signal
import threading
import time
import unicodedata
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, RunError
from .form import LINE_TOKENS, LINES, best_line, is_free, is_settled, rhyme_words
from .poetry.verse import FORMS

TEMPLATE_DATE = "26 Jul 2024"  # Llama-3.2's template writes today's date into the prompt unless told this, its default
THEME_LIMIT = 300  # characters
MOODS = ("joyful", "melancholy", "calm", "playful", "dreamy", "dark", "tender", "angry")
LENGTHS = ("short", "long")  # of a free verse, a couplet or a quatrain poem; the other forms have one length

# Rounds that a waiting thread of the engine spins before it sleeps; OpenMP reads this once, when it is loaded. Two idle
# cores write 51 tokens/s without spinning (SmolLM2, Q4_0), 100 with this, 117 with OpenMP's own 300,000 rounds; beside
# another busy process it is 72, 55 and 45.
SPIN = "300"
_NAMES = {form: f"a {form}" for form in FORMS} | {"free": "a free verse poem"}
_TOKENS = {"haiku": 64, "limerick": 128, "couplet": 128, "quatrain": 192, "sonnet": 320, "free": 256}
BIAS = 3.0  # logits in favour of words that rhyme, where the line has to; two more with every new try
_TAG = re.compile(r"<[^\s<>][^<>]*>|\[/?[A-Z_]{2,}\]")  # <|im_start|>, <s>, <b>, [INST]
_USER_TURN = re.compile(r"^\W*(user|human)\W*(:|$)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Poem:
    """A finished poem. `ended`: it stopped by itself, not at the length limit; `user_turn`: the model went on to write
    the user's part of the conversation; `tokens`: how many were written, in `seconds` of wall time."""

    text: str
    form: str
    ended: bool
    user_turn: bool
    tokens: int
    seconds: float


def clean_theme(theme: str) -> str:
    """The theme as plain words: no control characters, nothing that looks like a special token or a tag, single
    spaces, no full stop at its end. InputError if it is longer than 300 characters or if nothing is left of it."""
    if len(theme) > THEME_LIMIT:
        raise InputError(f"the theme has {len(theme)} characters; give at most {THEME_LIMIT}")
    # invisible characters go first: one of them inside <|im_end|> would hide it
    text = "".join(" " if c.isspace() else c for c in theme if c.isspace() or unicodedata.category(c)[0] != "C")
    while (plain := _TAG.sub(" ", text)) != text:  # again, as what is left may form a tag: <|im_<b>end|>
        text = plain
    text = " ".join(text.split()).rstrip(" .")
    if not text:
        raise InputError("the theme is empty; say in a few words what the poem should be about")
    return text


def request(theme: str, form: str, mood: str = "", length: str = "") -> str:
    """The user's message that asks for the poem, in the words of the training verses. InputError for an unknown form,
    mood or length, or a theme that `clean_theme` refuses."""
    for name, value, known in (("form", form, FORMS), ("mood", mood, ("", *MOODS)), ("length", length, ("", *LENGTHS))):
        if value not in known:
            choices = ", ".join(filter(None, known))
            raise InputError(f"unknown {name} {value!r}; choose one of {choices}")
    words = f"Write {_NAMES[form]} about {clean_theme(theme)}."
    if mood:
        words += f" Make it {mood}."
    if length and form in ("free", "couplet", "quatrain"):
        words += f" Keep it {length}." if length == "short" else " Make it long."
    return words


def cores() -> int:
    """Physical cores this process may use: its CPU affinity without hyperthreads, within a container's CPU quota and
    OMP_NUM_THREADS. With a thread more than there are cores free, the others wait for it at every layer."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    physical = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        physical.add(siblings.read_text() if siblings.exists() else str(cpu))
    count = len(physical)
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists() and (share := quota.read_text().split())[0] != "max":
        count = min(count, round(int(share[0]) / int(share[1])))
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        count = min(count, int(wanted))
    return max(1, count)


class Poet:
    """A loaded GGUF model. All methods may be called from several threads at once; `n_parallel` poems are written
    together and a further one waits.

    gguf: the model file. n_ctx: tokens a poem and its prompt may have together. threads: `cores()` unless given.
    InputError if the file is missing or no GGUF, RunError if the engine cannot load it.
    """

    def __init__(self, gguf: str | Path, n_parallel: int = 8, n_ctx: int = 2048, threads: int | None = None) -> None:
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
        params.n_parallel = n_parallel
        params.n_ctx = n_ctx * n_parallel
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
            raise RunError(
                f"{gguf} could not be loaded: it is damaged or not a model for text; fetch it again"
            ) from None
        # The engine may be let go only once its loop runs: until then its destructor would wait for ever.
        self._server.handle_completions({"prompt": [1], "n_predict": 1})
        if threading.current_thread() is threading.main_thread():
            # llama.cpp has taken SIGINT and SIGTERM for itself; without this Ctrl-C would never reach Python
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.getsignal(number))
        self._door = threading.Lock()
        self._free = threading.Semaphore(n_parallel)

    def stream(
        self,
        theme: str,
        form: str = "free",
        *,
        mood: str = "",
        length: str = "",
        seed: int | None = None,
        temperature: float = 0.7,
        max_tokens: int | None = None,
        left: threading.Event | None = None,
    ) -> Generator[str, None, Poem]:
        """Yield the poem piece by piece; the generator's return value is the Poem. Closing it frees the engine after
        the token in work, and so does any thread that sets `left`, which ends it. max_tokens: by form unless given.
        seed: random unless given.

        InputError as in `request`; RunError if the engine fails."""
        message = request(theme, form, mood, length)
        limit = max_tokens or _TOKENS[form] * (2 if length == "long" else 1)
        started = time.perf_counter()
        text = ""
        with closing(self._write(message, "", 1, seed, temperature, limit, left)) as growing:
            for (draft,) in growing:
                if piece := draft.text[len(text) :]:
                    text = draft.text
                    yield piece
        return _poem(text, form, draft.ended is True, draft.tokens, started)

    def keep_form(
        self,
        theme: str,
        form: str = "free",
        *,
        mood: str = "",
        length: str = "",
        seed: int | None = None,
        temperature: float = 0.7,
        candidates: int = 4,
        rounds: int = 3,
        left: threading.Event | None = None,
    ) -> Generator[str, None, Poem]:
        """As `stream`, but line by line: `candidates` next lines are written in one batch and the first that keeps the
        form stays (the nearest, if none does in so many `rounds`). Yields "" while it searches. Free verse has no form
        to keep and is streamed as it comes. The Poem's `tokens` count those of all candidates."""
        if form == "free":
            options: dict[str, Any] = {"mood": mood, "length": length, "seed": seed, "temperature": temperature}
            return (yield from self.stream(theme, form, left=left, **options))
        message = request(theme, form, mood, length)
        left = left or threading.Event()
        started = time.perf_counter()
        seeds = random.Random(seed)
        text, tokens = "", 0
        lines: list[str] = []
        while len(lines) < LINES[form]:
            best, fit = "", 0.0
            for tried in range(rounds):
                n = 1 if is_free(lines, form) else candidates
                bias = [[f" {word}", BIAS + 2 * tried] for word in rhyme_words(lines, form)]
                options = {"stop": ["\n"], "logit_bias": bias}
                number = seeds.getrandbits(31)
                drafts: list[_Draft] = []
                with closing(self._write(message, text, n, number, temperature, LINE_TOKENS, left, options)) as growing:
                    for drafts in growing:
                        yield ""
                        for draft in drafts:
                            line, line_fit = best_line(draft.text, draft.ended is not None, lines, form)
                            if line_fit > fit:
                                best, fit = line, line_fit
                        if fit > 0.85 or all(d.ended is not None or is_settled(d.text, form, lines) for d in drafts):
                            break
                tokens += sum(draft.tokens for draft in drafts)
                if left.is_set():
                    return _poem(text, form, False, tokens, started)
                if fit > 0.5:
                    break
                if 2 * sum(not draft.text.strip() for draft in drafts) > n and text[-2:] not in ("", "\n\n"):
                    text += "\n"  # most of them begin a new stanza here
                    yield "\n"
            if not best:
                break
            lines.append(best)
            text += best + "\n"
            yield best + "\n"
        return _poem(text, form, True, tokens, started)

    def recite(self, theme: str, form: str = "free", *, keep_form: bool = False, **options: Any) -> Poem:
        """The whole poem at once; options and errors as in `stream`, or in `keep_form`."""
        pieces = (self.keep_form if keep_form else self.stream)(theme, form, **options)
        while True:
            try:
                next(pieces)
            except StopIteration as stop:
                return stop.value

    def _write(
        self,
        message: str,
        before: str,
        n: int,
        seed: int | None,
        temperature: float,
        limit: int,
        left: threading.Event | None,
        options: dict[str, Any] | None = None,
    ) -> Generator[list[_Draft], None, None]:
        """Have `n` answers written at once, each going on from `before`; yields the drafts whenever one has grown.
        Ends when they are done, or after the token in work once `left` is set."""
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": message}],
            "chat_template_kwargs": {"date_string": TEMPLATE_DATE},
            "seed": random.getrandbits(31) if seed is None else seed,
            "temperature": temperature,
            "repeat_penalty": 1.1,  # a small model left alone repeats one line for ever
            "repeat_last_n": 256,
            "max_tokens": limit,
            "n": n,
            "stream": True,
            "stream_options": {"include_usage": n == 1},
        }
        if before:
            body["messages"].append({"role": "assistant", "content": before})
        body |= options or {}
        arrived: queue.SimpleQueue[dict | Exception | None] = queue.SimpleQueue()
        closed = threading.Event()

        def gone() -> bool:
            return closed.is_set() or (left is not None and left.is_set())

        def receive(chunk: dict) -> bool:  # True tells the engine to drop the request
            arrived.put(chunk)
            return gone()

        def work() -> None:
            try:
                with self._slots(n):
                    if not gone():
                        self._server.handle_chat_completions(body, receive)
                arrived.put(None)
            except Exception as error:  # whatever it was, the waiting side has to hear of it
                arrived.put(error)

        threading.Thread(target=work, daemon=False).start()
        drafts = [_Draft() for _ in range(n)]
        try:
            while (chunk := arrived.get()) is not None:
                if isinstance(chunk, Exception) or "choices" not in chunk:
                    raise RunError(f"the engine could not write this poem ({chunk}); try again")
                for choice in chunk["choices"]:
                    draft = drafts[choice["index"]]
                    if piece := choice["delta"].get("content"):
                        draft.text += piece
                        draft.tokens += 1
                    if choice["finish_reason"]:
                        draft.ended = choice["finish_reason"] == "stop"
                if n == 1 and "usage" in chunk:
                    drafts[0].tokens = chunk["usage"]["completion_tokens"]
                yield drafts
        finally:
            closed.set()

    @contextmanager
    def _slots(self, n: int) -> Iterator[None]:
        """Hold `n` of the engine's slots, first come first served."""
        with self._door:  # one at a time, or two that need several could each hold half and wait for ever
            for _ in range(n):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(n)


@dataclass
class _Draft:
    text: str = ""
    tokens: int = 0
    ended: bool | None = None  # None while it is written, then whether it stopped by itself


def _poem(text: str, form: str, ended: bool, tokens: int, started: float) -> Poem:
    return Poem(text.strip(), form, ended, bool(_USER_TURN.search(text)), tokens, time.perf_counter() - started)
