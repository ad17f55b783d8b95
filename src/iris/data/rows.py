"""Rows of any known shape -> messages. What is dropped, shortened or not read is counted; nothing disappears silently.

A row becomes a list of {"role", "content"} with the roles system, user, assistant and tool. An answer that must not be
learned has "train": False; what else stood in a turn (tool_calls, reasoning_content) goes along, and the row's `tools`
with its first message. Plain text becomes one message of the role text. SHAPES is the table of what can be read: a new
shape is one function in it.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import InputError, hub
from ..poetry import verses
from ..poetry.forms import FORMS, judge
from ..poetry.plan import ASKED, name_plan, plan_of
from ..record import digest_of
from . import files
from .contamination import Questions
from .template import PLAIN, Message, Unusable

BUNDLED: dict[str, Callable[[], Iterable[Any]]] = {
    "verses": partial(verses.read_verses, "train"),
    "grown": partial(files.read_file, verses.GROWN),
}
HUB = {
    "finetome": "mlabonne/FineTome-100k",
    "fusechat": "FuseAI/FuseChat-Mixture",
    "nitral": "Nitral-AI/Creative_Writing-ShareGPT",
}
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "function_call"), "assistant"),  # a call is said by it
    **dict.fromkeys(("tool", "observation", "function", "ipython"), "tool"),
}
CARRIED = ("tool_calls", "reasoning_content", "thinking", "name", "tool_call_id")  # of a turn: templates may read them

FORM_OF = {form.lines: name for name, form in FORMS.items() if form.lines}  # the fixed forms differ in their lines


@dataclass
class Dataset:
    """`rows` as messages, in order. `dropped` counts rows left out by reason, `cut` rows shortened, `unread` rows of
    which something filled was not used. `parts` has the counts of each data set of a mixture, `questions` those of
    the benchmark questions that were looked for; `planned` counts the rows of add_plans."""

    id: str
    revision: str | None
    rows: list[list[Message]] = field(default_factory=list)
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    parts: list[dict[str, Any]] = field(default_factory=list)
    questions: dict[str, int] = field(default_factory=dict)
    planned: int = 0

    @property
    def fingerprint(self) -> str:
        return digest_of(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """As a record holds it: `rows` counts them, `plain` those of plain text, which are learned whole."""
        plain = sum(messages[0]["role"] == PLAIN for messages in self.rows)
        counts = {"dropped": dict(self.dropped), "cut": dict(self.cut), "unread": dict(self.unread)}
        return vars(self) | counts | {"rows": len(self.rows), "plain": plain, "fingerprint": self.fingerprint}


def load(data: str, rows: int | None = None, seed: int = 3407, questions: Questions | None = None) -> Dataset:
    """Read `data`: a name in BUNDLED or HUB, a file, a folder of files, a Hub data set id, or several with commas
    between. `rows` asks for a seeded sample of the rows that can be used; a row with one of the benchmark `questions`
    is refused. InputError if there is nothing to read, a line is no JSON, or no row can be used."""
    sources = [_open(name) for name in ([data] if Path(data).exists() else data.split(","))]
    found = Dataset(",".join(id for id, _, _ in sources), sources[0][1] if len(sources) == 1 else None)
    found.questions = questions.counts if questions else {}
    seen: set[str] = set()
    for id, revision, raw in sources:
        read, usable = found.read, len(found.rows)
        for row in raw:
            messages, reason, unread = to_messages(row)
            found.read += 1
            found.unread.update(unread)
            if messages and (key := digest_of(messages)) in seen:
                reason = "repeated row"
            elif messages and questions and questions.stand_in([message["content"] for message in messages]):
                reason = "contains a benchmark question"
            if reason:
                found.dropped[reason] += 1
            else:
                seen.add(key)
                found.rows.append(messages)
        if len(sources) > 1:
            counts = {"read": found.read - read, "rows": len(found.rows) - usable}
            found.parts.append({"id": id, "revision": revision, **counts})
    if not found.rows:
        why = "; ".join(f"{count} x {reason}" for reason, count in found.dropped.items()) or "it is empty"
        raise InputError(f"{data} has no row to train on ({why})")
    if rows is not None and rows < len(found.rows):
        keep = sorted(random.Random(seed).sample(range(len(found.rows)), rows))
        found.rows = [found.rows[index] for index in keep]
    return found


def _open(name: str) -> tuple[str, str | None, Iterator[Any]]:
    """One data set's id, its revision and its rows as they are."""
    if name in BUNDLED:
        return name, None, ({"conversations": row["conversations"]} for row in BUNDLED[name]())
    if name.endswith(files.SUFFIXES) or Path(name).exists():
        return name, "sha256:" + files.digest(Path(name)), files.read_file(Path(name))
    if name not in HUB and name.count("/") != 1:
        known, kinds = ", ".join([*BUNDLED, *HUB]), " ".join(files.KINDS)
        raise InputError(f"unknown data {name!r}; known: {known}, a file ({kinds}), a folder or a Hub id USER/NAME")
    import datasets

    hub_id = HUB.get(name, name)
    commit = hub.revision(hub_id, "dataset")
    read = partial(datasets.load_dataset, hub_id, split="train", revision=commit)
    return hub_id, commit, iter(hub.retry(f"the data set {hub_id}", read))


class Cells(dict[str, Any]):
    """What is filled of a row, or of a turn: null, NaN and blanks are not. What is taken of it leaves it, so that what
    nobody took remains, to be told; `in_turns` is what remains of the row's turns."""

    def __init__(self, given: dict[str, Any]) -> None:
        filled = {str(name): value.strip() if isinstance(value, str) else value for name, value in given.items()}
        empty: tuple[Any, ...] = (None, "", [], {})
        super().__init__({name: value for name, value in filled.items() if value == value and value not in empty})
        self.in_turns: set[str] = set()

    def take(self, *names: str) -> Any:
        """The value of the first of `names` that is filled, else None."""
        return next((self.pop(name) for name in names if name in self), None)

    def say(self, role: str, *names: str) -> list[Message]:
        """What the first of `names` that is filled says: text by `role`, or messages. [] if none is."""
        value = self.take(*names)
        if isinstance(value, str):
            return [{"role": role, "content": value}]
        return [self.message(turn) for turn in ([value] if isinstance(value, dict) else value or [])]

    def message(self, given: dict[str, Any]) -> Message:
        """A message from one turn of this row."""
        turn = Cells(given)
        speaker, content = str(turn.take("from", "role") or ""), turn.take("value", "content")
        if (role := ROLES.get(speaker.lower())) is None:
            raise Unusable(f"unknown speaker {speaker[:20]!r}")
        message = {name: value for name in CARRIED if (value := turn.take(name))}
        if isinstance(content, list):
            content = "".join(part["text"] if isinstance(part, dict) else part for part in content)
        if content is None and "tool_calls" not in message:
            raise Unusable("empty turn")
        if not isinstance(content or "", str):
            raise TypeError
        for function in (call.get("function", call) for call in message.get("tool_calls", ())):
            arguments = function["arguments"]  # as a string the template would put their JSON into JSON once more
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            function["arguments"] = {name: value for name, value in arguments.items() if value is not None}
        if any(turn.get(name) in (0, 1) and not turn.take(name) for name in ("train", "weight")):
            message["train"] = False
        self.in_turns |= turn.keys()
        return message | {"role": role, "content": content or ""}


def conversation(row: Cells) -> list[Message]:
    """ShareGPT (from, value) or messages (role, content). An answer that was `chosen` ends those that end in none."""
    talk = row.say("user", "conversations", "messages", "conversation")
    if talk and talk[-1]["role"] != "assistant":
        chosen = row.say("assistant", "chosen")
        return chosen if chosen and chosen[0]["role"] != "assistant" else talk + chosen
    return talk


def exchange(row: Cells) -> list[Message]:
    """Alpaca (instruction, input, output; history, pairs of text), prompt and completion, question and answer, Dolly
    (instruction, context, response) and preferences (prompt, chosen), as text or as messages."""
    answer = row.say("assistant", "output", "response", "completion", "answer", "chosen")
    if not answer:
        return []
    asked, context = row.say("user", "instruction", "prompt", "question", "query"), row.say("user", "input", "context")
    if answer[0]["role"] != "assistant":  # the whole talk, which repeats what was asked
        return answer
    if asked and context:
        asked[-1]["content"] += "\n\n" + context[0]["content"]
    pairs = [zip(("user", "assistant"), pair, strict=True) for pair in row.take("history") or []]
    history = [row.message({"role": role, "content": said}) for pair in pairs for role, said in pair]
    return [*history, *(asked or context), *answer]


def text(row: Cells) -> list[Message]:
    """Plain text, which is learned whole."""
    return row.say(PLAIN, "text")


SHAPES: tuple[Callable[[Cells], list[Message]], ...] = (conversation, exchange, text)


def to_messages(row: Any) -> tuple[list[Message], str, list[str]]:
    """One row as messages, "" and what of it was not read; or [], the reason why it cannot be used, and []."""
    try:
        cells = Cells(row)
        messages = next((found for shape in SHAPES if (found := shape(cells))), [])
        if not messages:
            raise Unusable("unknown shape")
        left_out = _as_lesson(messages, cells) if messages[0]["role"] != PLAIN else []
        digest_of(messages)
    except Unusable as error:
        return [], str(error), []
    except UnicodeEncodeError:
        return [], "half of a surrogate pair, which is no text", []
    except (AttributeError, KeyError, TypeError, ValueError):
        return [], "something else where text belongs", []
    left_out += [f"column `{name}`" for name, value in cells.items() if value not in ("[]", "{}")]
    return messages, "", left_out + [f"`{name}` of a turn" for name in sorted(cells.in_turns)]


def _as_lesson(messages: list[Message], row: Cells) -> list[str]:
    """Begin a conversation with the row's system message and tools, end it with its last answer, and return what was
    left out. Unusable if there is nothing in it to learn."""
    if messages[0]["role"] != "system":
        messages[:0] = row.say("system", "system", "system_prompt")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise Unusable("no answer")
    size = len(roles) - roles[::-1].index("assistant")
    del messages[size:]
    if str(row.get("label")).lower() in ("true", "false") and str(row.take("label")).lower() == "false":
        messages[-1]["train"] = False  # KTO's verdict
    if not any(message["role"] == "assistant" and message.get("train", True) for message in messages):
        raise Unusable("no answer that is to be learned")
    if "system" in roles[1:size]:
        raise Unusable("system message in the middle")
    if roles[roles[0] == "system"] != "user":
        raise Unusable("does not begin with a question")
    tools = row.get("tools")
    with suppress(ValueError):
        tools = json.loads(tools) if isinstance(tools, str) else tools
    if tools and isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        messages[0]["tools"] = tools
        del row["tools"]
    return ["what follows the last answer"] if size < len(roles) else []


def add_plans(dataset: Dataset, share: float, seed: int) -> None:
    """Give `share` of the poems (0 to 1, a seeded draw of the answers that keep a fixed form by the strict judge) a
    second row whose request names their end words, which teaches a model to land on its rhymes; count them."""
    chance = random.Random(seed)
    found: list[list[Message]] = []
    for row in dataset.rows:
        for i, (asked, answer) in enumerate(pairwise(row)):
            is_asked = (asked["role"], answer["role"]) == ("user", "assistant") and ASKED not in asked["content"]
            if not is_asked or answer.get("train") is False:
                continue
            poem = answer["content"].strip()
            form = FORM_OF.get(poem.count("\n") + 1)
            words = plan_of(poem, form) if form and judge(poem, form).strict else None
            if words and chance.random() < share:
                request = asked | {"content": name_plan(asked["content"], words)}
                earlier = [turn | {"train": False} if turn["role"] == "assistant" else turn for turn in row[:i]]
                found.append([*earlier, request, answer])
    dataset.rows += found
    dataset.planned = len(found)
