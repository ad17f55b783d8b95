"""Syllables, rhymes and forms on lines written for this test; then the verses we train on, and the public poems."""

import json
from pathlib import Path

import pytest
import verse_accuracy
from hypothesis import given, settings
from hypothesis import strategies as st

from iris.poetry import verse
from iris.poetry.sound import line_syllables, rhymes, syllables
from iris.poetry.verse import FORMS, judge, scheme

ROOT = Path(__file__).resolve().parent.parent
VERSES = ROOT / "src/iris/poetry/verses.jsonl"
POEMS = ROOT.parent / "shared/data/poems/poems.jsonl.gz"

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
The work will keep; the evening will be here."""
FREE = "Nobody told the river\nthat the bridge was closed.\nIt went on under it,\ncarrying leaves."


def kept(text: str) -> set[str]:
    return {form for form in FORMS if judge(text, form).keeps}


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("river", 2), ("banana", 3), ("brightness", 2), ("half-light", 2), ("moonflowers", 3), ("42", 3)],
)
def test_syllables(word, count):
    assert count in syllables(word)


def test_every_pronunciation_counts():
    assert syllables("fire") == {1, 2}
    assert line_syllables("every fire") == {3, 4, 5}
    assert judge("Each fire in the night\na kettle begins to sing\nand no one is late", "haiku").keeps
    assert rhymes("we play the wind", "he rinsed and thinned") and rhymes("the wind", "behind")


@pytest.mark.parametrize(
    ("old", "counts"),
    [
        ("o'er", {1}),
        ("e'en", {1}),
        ("heav'n", {1, 2}),
        ("walk'd", {1}),
        ("thou'lt", {1}),
        ("th'", {0}),
        ("loveth", {2}),
    ],
)
def test_archaic_syllables(old, counts):
    assert syllables(old) == counts


def test_accents_and_marks_are_read():
    assert syllables("blessèd") == {2} and syllables("walkéd") == {2}
    assert 2 in syllables("café") and 2 in syllables("naïve")
    assert rhymes("a small café", "the end of day") and rhymes("It’s o’er", "“the door”")


@pytest.mark.parametrize("word", ["glimmerish", "unlanterned", "frobbling", "zq", "été", "ß"])
def test_unknown_words_have_syllables(word):
    assert min(syllables(word)) >= 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("the night", "a light"),
        ("see", "sea"),
        ("turning", "burning"),
        ("flower", "hour"),
        ("love", "prove"),
        ("wind", "find"),
        ("eternity", "to die"),
        ("memory", "let it be"),
        ("butterfly", "sky"),
        ("punishment", "meant"),
        ("is", "this"),
        ("I told her", "on his shoulder"),
        ("I find it", "I mind it"),
        ("walk'd", "talked"),
        ("the flow'rs", "the hours"),
        ("moonflower", "shower"),
        ("glasse", "passed the grass"),
    ],
)
def test_rhyming_pairs(a, b):
    assert rhymes(a, b) and rhymes(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("cat", "dog"),
        ("time", "mine"),
        ("rain", "name"),
        ("singing", "ring"),
        ("slowly", "sky"),
        ("though", "cough"),
        ("river", "over"),
        ("medical", "general"),
        ("red", "reed"),
        ("alone", "on"),
        ("the day", "a day"),
        ("", "day"),
        ("...", "..."),
    ],
)
def test_pairs_that_do_not_rhyme(a, b):
    assert not rhymes(a, b) and not rhymes(b, a)


def test_scheme():
    assert scheme(ABAB.splitlines()) == "ABAB"
    assert scheme(SONNET.splitlines()) == "ABABCDCDEFEFGG"
    assert scheme(LIMERICK.splitlines()) == "AABBA"
    assert scheme(["one day", "the sea", "that day"]) == "ABA"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (HAIKU, "haiku"),
        (LIMERICK, "limerick"),
        (COUPLET, "couplet"),
        (ABAB, "quatrain"),
        (AABB, "quatrain"),
        (ABBA, "quatrain"),
        (ABCB, "quatrain"),
        (ABAB + "\n\n" + ABAB.replace("asleep", "too deep"), "quatrain"),
        (SONNET, "sonnet"),
        (FREE, "free"),
    ],
)
def test_forms_kept(text, form):
    assert kept(text) == {form, "free"}
    verdict = judge(text)
    assert (verdict.form, verdict.keeps, verdict.reasons) == (form, True, ())
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
        (HAIKU.replace("a kettle", "the old kettle"), "haiku", ("line 2 has 8 syllables, not 7",)),
        (
            "Sure! Here is one:\n" + COUPLET,
            "couplet",
            ("it has 3 lines, an odd number", "line 1 is left without a rhyme beside it"),
        ),
        (ABAB.replace("away", "them back"), "quatrain", ("lines 2 and 4 do not rhyme",)),
        (ABAB.replace("give away", "bring the day"), "quatrain", ("lines 2 and 4 end in the same word",)),
        (LIMERICK.replace("eyes", "face"), "limerick", ("lines 3 and 4 do not rhyme",)),
        (
            LIMERICK.replace("rise\n", "rise "),
            "limerick",
            ("it has 4 lines, not 5 (an old printing may join the third and the fourth)", "lines 3 and 4 do not rhyme"),
        ),
        (COUPLET.replace("about", "away"), "couplet", ("lines 1 and 2 do not rhyme",)),
        (COUPLET.replace("\n", "\n\n"), "quatrain", ("stanza 1 has 1 line, not 4", "stanza 2 has 1 line, not 4")),
        (SONNET.rsplit("\n", 1)[0], "sonnet", ("it has 13 lines, not 14",)),
        ("One line alone", "free", ("it has 1 line, not 2 or more",)),
        ("the same again\n" * 3, "free", ("it says the same lines again",)),
        (FREE + "\ncarrying leaves.\ncarrying leaves.", "free", ("it says the same lines again",)),
    ],
)
def test_forms_broken_and_why(text, form, reasons):
    verdict = judge(text, form)
    assert verdict.reasons == reasons
    assert not verdict.keeps and verdict.score < 1


def test_a_sonnet_may_miss_one_rhyme_but_not_two():
    one = judge(SONNET.replace("fruit", "pears"), "sonnet")
    assert one.keeps and one.score < 1 and one.reasons == ()
    two = judge(SONNET.replace("fruit", "pears").replace("nails", "pins"), "sonnet")
    assert not two.keeps and two.reasons == ("lines 2 and 4 do not rhyme", "lines 6 and 8 do not rhyme")
    assert two.score < one.score


def test_only_a_limerick_may_repeat_a_word():
    assert judge(LIMERICK.replace("bashful and slow", "there in the snow"), "limerick").keeps
    assert not judge(COUPLET.replace("all about", "in and out"), "couplet").keeps


def test_limerick_with_long_short_lines_scores_less():
    long = LIMERICK.replace("When it", "And whenever it slowly and finally")
    assert judge(long, "limerick").keeps
    assert judge(long, "limerick").score < judge(LIMERICK, "limerick").score


def test_lines_of_a_verdict():
    verdict = judge(ABCB)
    assert [line.rhyme for line in verdict.lines] == ["", "B", "", "B"]
    assert [line.text for line in verdict.lines] == ABCB.splitlines()
    assert [line.rhyme for line in judge(HAIKU).lines] == ["", "", ""]
    assert [line.syllables for line in judge(HAIKU).lines] == [(5,), (7,), (5,)]
    record = judge(HAIKU).as_dict()
    assert list(record) == ["form", "keeps", "score", "reasons", "lines"]
    assert record["lines"][0] == {"text": "Rain on the tin roof", "syllables": [5], "rhyme": ""}
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("text", ["", "  \n \n", []])
def test_empty_text(text):
    for form in (None, *FORMS):
        verdict = judge(text, form)
        assert (verdict.keeps, verdict.score, verdict.lines) == (False, 0.0, ())
        assert verdict.reasons == ("it has no lines",)


def test_unknown_form():
    with pytest.raises(ValueError, match=r"'villanelle'.*haiku, limerick, couplet, quatrain, sonnet, free"):
        judge(FREE, "villanelle")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abeiouyghstrdl'-’èé,. 19字\n", max_size=60))
def test_any_text_has_a_sound_verdict(text):
    for form in (None, *FORMS):
        verdict = judge(text, form)
        assert 0 <= verdict.score <= 1
        assert verdict.keeps == (not verdict.reasons)


def test_training_verses_keep_their_forms():
    if not VERSES.exists():
        pytest.skip("src/iris/poetry/verses.jsonl is not written yet")
    broken = []
    for number, row in enumerate(VERSES.read_text("utf-8").splitlines(), 1):
        dialogue = json.loads(row)
        poems = [turn["value"] for turn in dialogue["conversations"] if turn["from"] == "gpt"]
        for poem, form in zip(poems, dialogue["forms"], strict=True):
            verdict = judge(poem, form)
            if not verdict.keeps:
                broken.append((number, form, verdict.reasons, poem))
    assert not broken, f"{len(broken)} poems break their form; the first: {broken[:3]}"


def test_public_poems_are_judged_as_labelled():
    if not POEMS.exists():
        pytest.skip("the public poems are not beside this repository (../shared/data/poems/poems.jsonl.gz)")
    found = verse_accuracy.measure(verse_accuracy.read(POEMS))
    recall = {group: share for group, (share, _) in found["recall"].items()}
    for group in ("limerick, five lines", "couplet, annotated, not in fours", "quatrain, annotated"):
        assert recall[group] >= 0.85, (group, recall)
    assert recall["sonnet, annotated, 14 lines"] >= 0.85
    for (label, form), share in found["false"].items():
        assert label == form or share <= 0.05, (label, form, share)


def test_sonnet_schemes_hold_the_known_ones():
    schemes = verse._sonnet_schemes()
    for known in ("ABABCDCDEFEFGG", "ABBACDDCEFGEFG", "ABBACDDCEFEFEF", "ABBACDDCEFFEGG"):
        assert known in schemes
    assert not any(pattern.startswith("AABB") for pattern in schemes)
