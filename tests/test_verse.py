"""Syllables, rhymes and forms on lines written for this test; then the verses we train on, and the public poems."""

import gzip
import json
import re
import time
from collections import defaultdict
from dataclasses import asdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iris import InputError
from iris.poetry.forms import FORMS, judge
from iris.poetry.judge import judge_file, judge_text
from iris.poetry.sound import line_syllables, perfect_rhyme, rhymes
from iris.poetry.verses import read_verses

HAIKU = "Rain on the tin roof\na kettle begins to sing\nand no one is late"
LIMERICK = """A baker who lived in the snow
Kept singing his songs to the dough;
When it started to rise
He would look in its eyes
And bow to it, bashful and slow."""
COUPLET = "The lamp is low, the fire is nearly out,\nAnd still the wind goes walking all about."
ABAB = """The harbour keeps its boats asleep,
The gulls have folded up the day;
What all the tides have had to keep
The morning tide will give away."""
AABB = """I left my hat upon the hill,
I think that it is lying still;
A thrush has made of it a bed
And keeps what I had in my head."""
ABBA = """The window holds a little light,
A coat is hanging by the door;
I do not need it any more
And will not need it in the night."""
ABCB = """The road was long, the moon was thin,
My boots were full of rain;
I met a stranger at the gate
And did not meet him again."""
SONNET = """The orchard wall is warm against my hand,
The wasps are busy in the fallen fruit,
And evening, like a tide upon the sand,
Comes up the field and covers every root.
I came to mend the ladder and the gate,
I brought a hammer and a bag of nails,
But there are hours that are content to wait,
And here is one, and all my purpose fails.
The light lies down along the bending grass,
A blackbird tries a phrase and lets it fall,
I sit and count the quiet minutes pass
And do not think of anything at all.
So leave the gate to swing another year;
The work will keep; the winter is not near."""
FREE = "Nobody told the river\nthat the bridge was closed.\nIt went on under it,\ncarrying leaves."


def kept(text: str) -> set[str]:
    return {form for form in FORMS if judge(text, form).keeps}


@pytest.mark.parametrize(
    ("text", "some", "never"),
    [
        ("cat", 1, 2), ("river", 2, 3), ("banana", 3, 2), ("brightness", 2, 3), ("half-light", 2, 3),
        ("moonflowers", 3, 1), ("42", 3, 2), ("1969", 5, 6), ("1969", 9, 6), ("in 1905", 5, 2), ("2000", 3, 1),
        ("2,000 years", 4, 3), ("the 3rd", 2, 3), ("the 22nd", 5, 2), ("the 100th time", 5, 2), ("the 1990s", 5, 2),
        ("7pm", 4, 1), ("3.5", 3, 2), ("$5 & 50%", 8, 5), ("GPU", 3, 0), ("rosé", 2, 1), ("pâté", 2, 1),
        ("pâtés", 2, 1), ("entrée", 2, 1), ("résumé", 3, 1), ("low[1] high²", 2, 3), ("low [12]", 1, 2), ("&", 1, 0),
        ("NASA", 2, 4), ("café", 2, 0), ("naïve", 2, 0), ("o'er", 1, 2), ("e'en", 1, 2), ("heav'n", 1, 3),
        ("heav'n", 2, 3), ("walk'd", 1, 2), ("thou'lt", 1, 2), ("th'", 0, 1), ("loveth", 2, 1), ("blessèd", 2, 1),
        ("walkéd", 2, 1),
    ],
)  # fmt: skip
def test_syllables(text, some, never):
    """Among the ways to read a text is one of so many syllables, and none of so many."""
    assert some in line_syllables(text) and never not in line_syllables(text)
    assert line_syllables("every fire") == {3, 4, 5}


PERFECT = [
    ("the night", "a light"), ("turning", "burning"), ("flower", "hour"), ("a stop", "the top"), ("the rain", "again"),
    ("wind", "find"), ("the wind", "thinned"), ("a small café", "the end of day"), ('the "light"!', "at night--"),
]  # fmt: skip
BY_LICENCE = [
    ("see", "sea"), ("he knows", "his nose"), ("we believe", "you leave"), ("love", "prove"), ("eternity", "to die"),
    ("memory", "let it be"), ("a memory", "of harmony"), ("punishment", "meant"), ("is", "this"),
    ("I told her", "on his shoulder"), ("I find it", "I mind it"), ("walk'd", "talked"), ("the flow'rs", "the hours"),
    ("moonflower", "shower"), ("on GPU", "for you"), ("glasse", "passed the grass"), ("It’s o’er", "“the door”"),
    ("were", "there"), ("a silver tern", "the beacons burn"), ("an Old Man of Madras", "upon a tall ass"),
]  # fmt: skip
NONE = [
    ("time", "mine"), ("rain", "name"), ("singing", "ring"), ("slowly", "sky"), ("though", "cough"), ("river", "over"),
    ("medical", "general"), ("red", "reed"), ("alone", "on"), ("the day", "a day"), ("", "day"), ("...", "..."),
    ("the ballet", "a net"), ("for Tommy,", "but Mary."), ("for tommy,", "but mary."), ("with Emily", "and Tommy"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "rhyme", "perfect"), [(PERFECT, True, True), (BY_LICENCE, True, False), (NONE, False, False)]
)
def test_rhymes(pairs, rhyme, perfect):
    for a, b in pairs:
        assert rhymes(a, b) is rhymes(b, a) is rhyme, (a, b)
        assert perfect_rhyme(a, b) is perfect_rhyme(b, a) is perfect, (a, b)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (HAIKU, "haiku"), (LIMERICK, "limerick"), (COUPLET, "couplet"), (ABAB, "quatrain"), (AABB, "quatrain"),
        (ABBA, "quatrain"), (ABCB, "quatrain"), (ABAB + "\n\n" + ABAB.replace("asleep", "too deep"), "quatrain"),
        (SONNET, "sonnet"), (FREE, "free"),
    ],
)  # fmt: skip
def test_forms_kept(text, form):
    assert kept(text) == {form, "free"}
    verdict = judge(text)
    assert (verdict.form, verdict.keeps, verdict.reasons) == (form, True, ())
    assert verdict.strict is (None if form == "free" else "\n\n" not in text)
    assert verdict.score > 0.9
    assert judge("\n  " + text.replace("\n", "  \n ") + "\n\n", form).keeps
    assert judge(text.split("\n"), form) == judge(text, form)


def test_couplets_in_a_row_are_couplets():
    second = "I put another log upon the grate,\nAnd think of nothing, for the hour is late."
    third = "The dog is dreaming by the kitchen chair;\nHe runs, and wakes, and wonders he was there."
    assert kept(f"{COUPLET}\n\n{second}") == {"couplet", "free"}
    assert kept(f"{COUPLET}\n{second}\n{third}") == {"couplet", "free"}
    assert judge(f"{COUPLET}\n{second}", "couplet").reasons == ("it has stanzas of four lines, not couplets",)


@pytest.mark.parametrize(
    ("text", "form", "reasons"),
    [
        (HAIKU.replace("a kettle", "the old kettle"), "haiku", ["line 2 has 8 syllables, not 7"]),
        ("Sure! Here is one:\n" + COUPLET, "couplet",
         ["it has 3 lines, an odd number", "line 1 is left without a rhyme beside it"]),
        (ABAB.replace("away", "them back"), "quatrain", ["lines 2 and 4 do not rhyme"]),
        (ABAB.replace("give away", "bring the day"), "quatrain", ["lines 2 and 4 end in the same word"]),
        (LIMERICK.replace("eyes", "face"), "limerick", ["lines 3 and 4 do not rhyme"]),
        (LIMERICK.replace("rise\n", "rise "), "limerick",
         ["it has 4 lines, not 5 (an old printing may join the third and the fourth)", "lines 3 and 4 do not rhyme"]),
        (COUPLET.replace("about", "away"), "couplet", ["lines 1 and 2 do not rhyme"]),
        (COUPLET.replace("\n", "\n\n"), "quatrain", ["stanza 1 has 1 line, not 4", "stanza 2 has 1 line, not 4"]),
        (SONNET.rsplit("\n", 1)[0], "sonnet", ["it has 13 lines, not 14"]),
        ("One line alone", "free", ["it has 1 line, not 2 or more"]),
        ("the same again\n" * 3, "free", ["it says the same lines again"]),
        (FREE + "\ncarrying leaves.\ncarrying leaves.", "free", ["it says the same lines again"]),
    ],
)  # fmt: skip
def test_forms_broken_and_why(text, form, reasons):
    verdict = judge(text, form)
    assert list(verdict.reasons) == reasons
    assert not verdict.keeps and verdict.score < 1


def test_a_sonnet_may_miss_one_rhyme_but_not_two():
    one = judge(SONNET.replace("fruit", "pears"), "sonnet")
    assert one.keeps and one.score < 1 and one.reasons == ()
    two = judge(SONNET.replace("fruit", "pears").replace("nails", "pins"), "sonnet")
    assert not two.keeps and two.reasons == ("lines 2 and 4 do not rhyme", "lines 6 and 8 do not rhyme")
    assert two.score < one.score


def test_lines_of_a_verdict():
    assert [line.rhyme for line in judge(ABCB).lines] == ["", "A", "", "A"]  # in the order in which the rhymes begin
    verdict = json.loads(json.dumps(asdict(judge(HAIKU))))
    assert list(verdict) == ["form", "keeps", "strict", "score", "reasons", "faults", "lines"]
    assert verdict["lines"][1] == {"text": HAIKU.split("\n")[1], "syllables": [7], "count": 7, "rhyme": ""}
    assert judge("fire and every fire\n" * 3, "haiku").lines[0].count == 5  # of 4 to 7 the one that is asked for


@pytest.mark.parametrize(
    ("text", "form", "faults"),
    [
        (LIMERICK.replace("and slow", "in snow"), "limerick", ("lines 1 and 5 end in the same word",)),
        (LIMERICK.replace("When it", "And whenever it slowly"), "limerick", ("line 3 has 11 syllables, not 5 to 7",)),
        (ABAB.replace("give away", "make us pay"), "quatrain", ()),
        (COUPLET.replace("nearly out", "what they love").replace("all about", "hard to prove"), "couplet",
         ("lines 1 and 2 rhyme by licence only",)),
        (COUPLET + "\n" + COUPLET, "couplet", ("it has 4 lines, not 2",)),
        (COUPLET.replace("low,", "low, the lamp is very low,").replace("all about", "on"), "couplet",
         ("line 1 has 16 syllables, not 6 to 12", "lines 1 and 2 do not rhyme")),
        (SONNET.replace("fruit", "pears"), "sonnet", ("lines 2 and 4 do not rhyme",)),  # the other judge forgives it
        (ABAB.replace("day;", "day;\n"), "quatrain", ("stanza 1 has 2 lines, not 4", "stanza 2 has 2 lines, not 4")),
    ],
)  # fmt: skip
def test_strict_faults(text, form, faults):
    verdict = judge(text, form)
    assert verdict.faults == faults and verdict.strict is (not faults)


def test_unknown_form():
    with pytest.raises(ValueError, match=r"'villanelle'.*haiku, limerick, couplet, quatrain, sonnet, free"):
        judge(FREE, "villanelle")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abeiouyghstrdl'-’èé,. 19字\n", max_size=60))
@example("  \n \n")
def test_any_text_has_a_sound_verdict(text):
    for form in (None, *FORMS):
        verdict = judge(text, form)
        if not text.strip():
            assert (verdict.score, verdict.lines, verdict.reasons) == (0.0, (), ("it has no lines",))
        assert 0 <= verdict.score <= 1
        assert verdict.keeps == (not verdict.reasons)
        assert (verdict.strict is None) == (verdict.form == "free")
        assert verdict.keeps or not verdict.strict


HEAD, *REST = HAIKU.split("\n")


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        *((text, []) for text in (
            *(between.join([HEAD, *REST]) for between in (" / ", " /\n", "\\n", "\n\n")),
            HAIKU.replace("\n", "<br>\n"), HAIKU.replace("and", "&amp;"), "> " + HAIKU.replace("\n", "\n> "),
            "".join(f"{n}. {line}\n" for n, line in enumerate([HEAD, *REST], 1)), f"{HAIKU}\n\n* * *\n",
            "---\nlayout: haiku\nauthor: A. Reader\n---\n" + HAIKU,
        )),
        ("<h1>Rain</h1>\n<p>" + HAIKU.replace("\n", "<br/>") + "</p>", ["Rain"]),
        (f"Rain\n\n{HAIKU}\n\n— A. Reader", ["Rain", "— A. Reader"]),
        (f"# Rain\nby A. Reader\n\n{HAIKU}", ["Rain", "by A. Reader"]),
        (f"IV.\n\n{HAIKU}\n-- Bashō, 1680", ["IV.", "-- Bashō, 1680"]),
        (f"{HEAD}\n\n" + "\n".join(REST), []),  # a first line that the form needs is no title
        (HAIKU.replace("\n", "[1]\n") + "\n\n[1] a note", ["[1] a note"]),
    ],
)  # fmt: skip
def test_what_is_no_verse_is_left_out(text, left_out):
    verdict, found = judge_text(text, "haiku")
    assert verdict.keeps and len(verdict.lines) == 3
    assert found == left_out


@pytest.mark.parametrize(
    "text", ["ふるいけや\nかわずとびこむ", "Les sanglots longs des violons\nde l'automne blessent"]
)
def test_another_language_is_told(text):
    with pytest.raises(InputError, match="English only"):
        judge_text(text, None)


def test_rows_in_any_case_and_bad_rows_by_number(tmp_path, capsys):
    rows = [
        {"text": HAIKU, "form": "Haiku"},
        {"lines": [HEAD, None], "form": "haiku"},
        {"lines": [[HEAD]]},
        {"text": HAIKU, "form": "villanelle"},
        "not a poem",
        {"lines": LIMERICK.replace("bashful and slow", "there in the snow").split("\n"), "form": " LIMERICK "},
    ]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    with pytest.raises(InputError) as told:
        judge_file(str(path), None, as_json=True, strict=True)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    judged = [(one["form"], one["keeps"], one["strict"], one["reasons"]) for one in found]
    assert judged[0] == ("haiku", True, True, [])
    assert judged[1:] == [("limerick", True, False, ["lines 1 and 5 end in the same word"])]
    reasons = ("line 2 is null", 'line 1 is ["Rain', "unknown form 'villanelle'", "neither")
    for number, why in enumerate(reasons, 2):
        assert f"row {number}: {why}" in str(told.value).replace("it has ", "")


def test_encodings(tmp_path, capsys):
    path = tmp_path / "poem.md"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(HAIKU.replace("kettle", "café"), encoding=encoding)
        judge_file(str(path), "HAIKU", as_json=True)
        assert json.loads(capsys.readouterr().out)["keeps"]
    for encoding in ("latin-1", "utf-16-le"):
        path.write_text(HAIKU.replace("kettle", "café"), encoding=encoding)
        with pytest.raises(InputError, match="is not UTF-8; save it as UTF-8"):
            judge_file(str(path), None, as_json=True)


def test_the_judge_is_near_linear():
    """A verdict on 2,000 lines takes about ten times as long as one on 200, not a hundred times."""
    lines = [line for row in read_verses("train") for line in row["conversations"][1]["value"].split("\n")]
    judge(lines[:2000], "couplet")  # reads the words
    took = []
    for size in (200, 2000):
        started = time.perf_counter()
        judge(lines[:size], "couplet")
        took.append(time.perf_counter() - started)
    assert len(lines) >= 2000 and took[1] < 40 * took[0]


def test_bundled_verses_keep_their_forms():
    for row in read_verses("train") + read_verses("held_out"):
        poems = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        for poem, form in zip(poems, row["forms"], strict=True):
            assert judge(poem, form).keeps, (form, judge(poem, form).reasons, poem)


def test_public_poems_are_judged_as_labelled(data):
    """Of those whose annotation fits the form's shape at least 85% keep it, and of no label more than 5% keep another
    form. Couplets printed in stanzas of four lines are quatrains as well: they are left out."""
    forms = [form for form in FORMS if FORMS[form].lines]
    with gzip.open(data / "poems" / "poems.jsonl.gz", "rt", encoding="utf-8") as lines:
        poems = [poem for line in lines if (poem := json.loads(line))["form"] in forms]
    kept, false = defaultdict(list), defaultdict(list)
    for number, poem in enumerate(poems):
        label, text = poem["form"], "\n".join(line.strip() for line in poem["lines"])
        sizes = [len(stanza.splitlines()) for stanza in re.split("\n\n+", text.strip("\n"))]
        if label == "couplet" and set(sizes) == {4}:
            continue
        length = {"limerick": 5, "sonnet": 14}.get(label, sum(sizes))
        if (poem["rhyme"] or label == "limerick") and sum(sizes) == length:
            kept[label].append(judge(poem["lines"], label).keeps)
        for form in forms if number % 4 == 0 else ():  # a quarter, as this takes four judges
            if form != label:
                false[label, form].append(judge(poem["lines"], form).keeps)
    for label in ("limerick", "couplet", "quatrain", "sonnet"):
        assert sum(kept[label]) >= 0.85 * len(kept[label]) > 0, label
    for each, hits in false.items():
        assert sum(hits) <= 0.05 * len(hits), each
