"""English words: inflection of verbs, number of nouns, and what a word may be in a sentence.

Rules first, the lists of lexicon.py for what no rule gives. Words come as they stand in the text:
case and a trailing comma are seen through and kept.
"""

import re

from megatron_yuyuan.evaluate import lexicon

VOWELS = "aeiou"
SINGULAR_ICS = (
    "genetics",
    "omics",
    "ethics",
    "iatrics",
    "physics",
    "kinetics",
    "dynamics",
    "stetrics",
)


def bare(word: str) -> str:
    """The word in lower case, without punctuation around it."""
    return word.lower().strip(",;:.?!\"'“”‘’[]")


def third_person(verb: str) -> str:
    """`carry` -> `carries`, `Influence` -> `Influences`; a comma behind the word stays there."""
    return _inflect(verb, _third_person)


def past_tense(verb: str) -> str:
    """`stop` -> `stopped`, `lead` -> `led`."""
    return _inflect(verb, _past_tense)


def base_form(verb: str) -> tuple[str, str] | None:
    """(base form, auxiliary of its tense) of a finite verb: `carries` -> (`carry`, `does`), `led` ->
    (`lead`, `did`), `cause` -> (`cause`, `do`). None: no such verb is known."""
    word = bare(verb)
    if is_base_verb(word):
        return word, "do"
    for base, (past, _) in lexicon.IRREGULAR_VERBS.items():
        if word == past:
            return base, "did"
    if word == "has":
        return "have", "does"
    stems = {word[:-1], word[:-2], word[:-3] + "y", word[:-3], word[:-4]}
    for inflect, auxiliary in ((_third_person, "does"), (_past_tense, "did")):
        for stem in sorted(stems, key=len, reverse=True):
            if is_base_verb(stem) and inflect(stem) == word:
                return stem, auxiliary
    return None


def _inflect(verb: str, rule) -> str:
    core = verb.rstrip(",;")
    inflected = rule(core.lower())
    if core.isupper():
        inflected = inflected.upper()
    elif core[:1].isupper():
        inflected = inflected[:1].upper() + inflected[1:]
    return inflected + verb[len(core) :]


def _third_person(verb: str) -> str:
    if verb in ("be", "have"):
        return {"be": "is", "have": "has"}[verb]
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2:-1] not in VOWELS:
        return verb[:-1] + "ies"
    return verb + "s"


def _past_tense(verb: str) -> str:
    if verb in lexicon.IRREGULAR_VERBS:
        return lexicon.IRREGULAR_VERBS[verb][0]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2:-1] not in VOWELS:
        return verb[:-1] + "ied"
    return verb + (verb[-1] if verb in lexicon.DOUBLING else "") + "ed"


def is_base_verb(word: str) -> bool:
    """May be a base form: `reduce`, `increase`, `hospitalise`."""
    word = bare(word)
    return (
        word in lexicon.VERBS
        or word in lexicon.VERB_OR_NOUN
        or word in lexicon.IRREGULAR_VERBS
        or is_pure_verb(word)
    )


def is_pure_verb(word: str) -> bool:
    """A base form that is seldom a noun."""
    word = bare(word)
    if word.endswith(("ize", "ise", "ify", "uate", "olate", "grate")) and len(word) > 6:
        return word not in (
            "exercise",
            "otherwise",
            "likewise",
            "enterprise",
            "expertise",
            "graduate",
        )
    return word in lexicon.VERBS and word not in lexicon.VERB_OR_NOUN


def is_plural(word: str) -> bool:
    """Looks like a plural noun: `statins`, `children`, not `diabetes`, `sepsis`, `virus`."""
    word = bare(word).removesuffix("(s)")
    if word in lexicon.IRREGULAR_PLURALS:
        return True
    if word in lexicon.SINGULAR_IN_S or word.endswith(
        ("ss", "us", "is", *SINGULAR_ICS, "'s", "’s")
    ):
        return False
    return len(word) > 2 and word.endswith(("s", "s'", "s’"))


def is_adverb(word: str) -> bool:
    """`really`, `safely`, not `family`; not NO, a gas."""
    if word.isupper():
        return False
    word = bare(word)
    return word in lexicon.ADVERBS or (
        word.endswith("ly") and len(word) > 4 and word not in lexicon.LY_NOT_ADVERBS
    )


def is_adjective(word: str) -> bool:
    """By the list or the ending; a hyphenated word by its last part (`life-threatening` is none)."""
    word = bare(word)
    if word in lexicon.ADJECTIVES or word.split("-")[-1] in lexicon.ADJECTIVES:
        return True
    if word in lexicon.NOUNS_LIKE_ADJECTIVES or len(word) < 5:
        return False
    return word.endswith(lexicon.ADJECTIVE_ENDINGS)


def is_participle(word: str) -> bool:
    """A past participle: `associated`, `given`, `under-diagnosed`."""
    last = bare(word).split("-")[-1]
    if last in lexicon.ED_NOT_PARTICIPLES:
        return False
    if last.endswith("ed") and len(last) > 3:
        return True
    return any(last in (forms[1:] or ()) for forms in lexicon.IRREGULAR_VERBS.values())


def is_progressive(word: str) -> bool:
    """A present participle that is seldom a noun: `increasing`, not `screening`."""
    word = bare(word)
    return word.endswith("ing") and len(word) > 4 and word not in lexicon.ING_NOUNS


def is_preposition(word: str) -> bool:
    return bare(word) in lexicon.PREPOSITIONS


def head_of(words: list[str]) -> str:
    """The noun a phrase is about: the last word before what describes it (`of`, `in`, `who`,
    `undergoing`, a comma). `the risk of falls` -> `risk`."""
    head = words[0]
    for place, word in enumerate(words):
        described = is_preposition(word) or bare(word) in lexicon.RELATIVES or word.startswith("(")
        if place and (described or bare(word) == "to" or _reduced(words, place)):
            break
        head = word
        if word.endswith(",") and not {"and", "or"} & {bare(w) for w in words[place:]}:
            break
    return head


def _reduced(words: list[str], place: int) -> bool:
    """A participle that opens a clause behind its noun: `women treated with X`, `drugs lowering X`."""
    if is_progressive(words[place]) and is_plural(words[place - 1]):
        return True
    after = words[place + 1] if place + 1 < len(words) else ""
    return is_participle(words[place]) and (is_preposition(after) or is_adverb(after))


def is_plural_phrase(words: list[str]) -> bool | None:
    """Whether a phrase takes a plural verb; None where coordination leaves it open."""
    first, head = bare(words[0]), head_of(words)
    upto = [bare(word) for word in words[: words.index(head) + 1]]
    if first in ("each", "every", "either", "neither", "a", "an", "this", "that"):
        return is_plural(head) if first in ("a", "an", "either", "neither") else False
    if "and" in upto[1:] and not is_adjective(upto[upto.index("and", 1) - 1]):
        return True if is_plural(head) or "," not in words else None
    if "or" in upto[1:]:
        return None
    if first in ("most", "some", "all", "many", "several", "half") and "of" in map(
        bare, words[1:2]
    ):
        return is_plural(head_of(words[2:] or words))
    return is_plural(head)


def capitalise(sentence: str) -> str:
    """First letter upper-case, unless the first word is a name written otherwise: `p53`, `mTOR`,
    `β-catenin`."""
    first = sentence.split(" ", 1)[0]
    named = re.match(r"[a-z]{1,3}-?\d", first) or any(letter.isupper() for letter in first)
    if named or not first[:1].isascii():
        return sentence
    return sentence[:1].upper() + sentence[1:]
