"""A subject and a predicate become a clause, affirmed and denied, with tense and number kept."""

from dataclasses import dataclass
from itertools import pairwise

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate import lexicon
from megatron_yuyuan.evaluate.english import (
    bare,
    base_form,
    is_adjective,
    is_adverb,
    is_base_verb,
    is_participle,
    is_preposition,
    is_pure_verb,
    past_tense,
    third_person,
)

DENIED = {
    "either": "neither",
    "any": "no",
    "some": "no",
    "anyone": "no one",
    "anybody": "nobody",
    "anything": "nothing",
}
"""First word of a subject -> what denies it."""
AFFIRMED = {"any": "some", "anyone": "someone", "anybody": "somebody", "anything": "something"}
DENYING = frozenset(
    "no none nobody nothing nowhere neither never rarely seldom hardly scarcely barely few little "
    "cannot".split()
)
"""To deny what these deny already says something twisted: `no drug does not help`."""
SELDOM = frozenset("never rarely seldom hardly scarcely barely".split())
"""Of these, adverbs: behind a preposition they belong to a noun (`in never smokers`)."""
LIMITING = frozenset("only just merely solely simply".split())
"""`not only` adds where `not` denies."""
NOT_BEFORE = frozenset("all every many only everyone everybody everything".split())
"""`All patients need surgery` is denied by `Not all patients need surgery`."""
INFINITIVE_VERBS = frozenset("help make let need have try want tend seem".split())


@dataclass(frozen=True)
class Clause:
    """A sentence's words before its first letter is raised and its full stop set."""

    affirmative: str
    negative: str


def refusal(question: str, why: str, remedy: str = "") -> DataError:
    """The error for what cannot be rewritten."""
    return DataError(
        f"cannot turn {question.strip()!r} into a statement",
        why,
        remedy or "one plain question, such as `Does aspirin prevent stroke?`",
    )


def clause(auxiliary: str, subject: list[str], predicate: list[str]) -> Clause:
    """Subject and predicate of a question behind its auxiliary (lower case, positive).

    Raises DataError: nothing is stated of the subject, or either denies already.
    """
    denied = denial(subject) or denial(predicate)
    if denied:
        raise denied_twice(" ".join([auxiliary, *subject, *predicate]), denied)
    if bare(predicate[0]) == "not":
        predicate = predicate[1:]
    if not predicate:
        raise refusal(" ".join([auxiliary, *subject]), "subject or predicate is missing")
    if auxiliary in lexicon.HAVE and not _has_participle(predicate):
        auxiliary, predicate = (
            {"has": "does", "have": "do", "had": "did"}[auxiliary],
            ["have", *predicate],
        )
    if auxiliary in lexicon.DO:
        predicate = _uninflected(predicate)
    told = _affirmed(auxiliary, predicate)
    first = bare(subject[0])
    if first == "there" and auxiliary in lexicon.BE:
        return _there(auxiliary, predicate)
    rest = " ".join(subject[1:])
    if first in DENIED:
        denied = "none" if DENIED[first] == "no" and rest.startswith("of ") else DENIED[first]
        neither = rest.replace(" or ", " nor ", 1) if first == "either" else rest
        return Clause(f"{AFFIRMED.get(first, first)} {rest} {told}", f"{denied} {neither} {told}")
    if first in NOT_BEFORE:
        return Clause(f"{first} {rest} {told}", f"not {first} {rest} {told}")
    whole = " ".join(subject)
    return Clause(f"{whole} {told}", f"{whole} {_denied(auxiliary, predicate)}")


def denial(words: list[str], denying: frozenset[str] = DENYING) -> str:
    """The word by which a phrase denies or restricts what it says; ``: there is none.

    Not one that only describes a noun: `patients with no symptoms`, `a rarely used drug`, `those who
    never smoked`; nor NO, a gas, unless all is in capitals.
    """
    capitals = len(words) > 1 and all(map(str.isupper, words))
    for place, word in enumerate(words):
        name, before = bare(word).replace("’", "'"), bare(words[place - 1]) if place else ""
        if name in lexicon.RELATIVES:
            return ""
        if before == "not" and name in LIMITING:
            return f"not {name}"
        if name.endswith("n't") or (name == "not" and is_adverb(before)):
            return name
        behind = before == "with" or (name in SELDOM and is_preposition(before))
        describes = before in lexicon.DETERMINERS or (place > 1 and behind)
        if name in denying and not describes and (capitals or not word.isupper()):
            return name
    return ""


def denied_twice(question: str, word: str) -> DataError:
    """The error for what a `word` denies or restricts already."""
    return refusal(
        question,
        f"its `{word}` would be denied once more",
        f"a question and an answer without `{word}`",
    )


def _affirmed(auxiliary: str, predicate: list[str]) -> str:
    """`prevents stroke`, `is safe`, `has been tested`: with `any` as `some`, without `ever`."""
    words = [word for word in _some(predicate) if bare(word) not in ("ever", "yet")]
    if not words:
        raise refusal(" ".join(predicate), "its predicate is missing")
    if auxiliary not in lexicon.DO:
        return " ".join([auxiliary, *words])
    return " ".join(_finite(auxiliary, words))


def _denied(auxiliary: str, predicate: list[str]) -> str:
    """`does not prevent stroke`, `cannot`, `is no longer endemic` of `is still endemic`."""
    if bare(predicate[0]) == "still" and len(predicate) > 1:
        if auxiliary in lexicon.DO:
            return " ".join(["no longer", *_finite(auxiliary, predicate[1:])])
        return " ".join([auxiliary, "no longer", *predicate[1:]])
    negated = "cannot" if auxiliary == "can" else f"{auxiliary} not"
    return " ".join([negated, *predicate])


def _there(auxiliary: str, predicate: list[str]) -> Clause:
    """`there is a link`, denied: `there is no link`; `there are more deaths`: `there are not more`."""
    told = " ".join(["there", auxiliary, *_some(predicate)])
    first = bare(predicate[0])
    if first == "still":
        return Clause(told, " ".join(["there", auxiliary, "no longer", *predicate[1:]]))
    counted = first.isdigit() or first in lexicon.IRREGULAR_PLURALS
    if first in lexicon.QUANTITIES or first == "the" or is_adverb(first) or counted:
        return Clause(told, " ".join(["there", auxiliary, "not", *predicate]))
    rest = predicate[1:] if first in ("a", "an", "any", "some") else predicate
    return Clause(told, " ".join(["there", auxiliary, "no", *rest]))


def _uninflected(predicate: list[str]) -> list[str]:
    """`increases risk` behind `Does X` -> `increase risk`."""
    verb = next((i for i, word in enumerate(predicate) if not is_adverb(word)), 0)
    found = base_form(predicate[verb])
    if found is None or found[1] != "does":
        return predicate
    return [*predicate[:verb], found[0], *predicate[verb + 1 :]]


def _finite(auxiliary: str, predicate: list[str]) -> list[str]:
    """The predicate with its verbs inflected as `does` or `did` says: `reduces pain and shortens`."""
    inflect = {"does": third_person, "did": past_tense}.get(auxiliary)
    if inflect is None:
        return predicate
    start = 0
    while start < len(predicate) - 1 and is_adverb(predicate[start]):
        start += 1
    words = list(predicate)
    words[start] = inflect(words[start])
    if bare(predicate[start]) in INFINITIVE_VERBS:
        return words
    for place in range(start + 1, len(words) - 1):
        if not _infinitive(words[:place]) and _joins_verb(words, place, start):
            words[place] = inflect(words[place])
    return words


def _infinitive(words: list[str]) -> bool:
    """Whether a verb behind these words may belong to a `to`: `to prevent and treat`."""
    return any(bare(a) == "to" and is_base_verb(b) for a, b in pairwise(words))


def _joins_verb(words: list[str], place: int, verb: int) -> bool:
    """Whether words[place] is a second verb of the same subject: `reduce pain and shorten the stay`."""
    before = place - 1
    while before > verb and is_adverb(words[before]):
        before -= 1
    listed = words[before].endswith(",") and {"and", "or"} & {bare(w) for w in words[place + 1 :]}
    if bare(words[before]) not in ("and", "or", "but") and not listed:
        return False
    if {bare(word) for word in words[verb:before]} & (lexicon.RELATIVES | {"how", "what", "why"}):
        return False
    following = bare(words[place + 1])
    if is_pure_verb(words[place]):
        return True
    adjacent = before == verb + 1
    takes_object = following in lexicon.DETERMINERS or is_adjective(following)
    return (
        is_base_verb(words[place]) and (takes_object or adjacent) and not is_preposition(following)
    )


def _some(predicate: list[str]) -> list[str]:
    """`any effect` -> `some effect`, `any better` -> `better`; `in any patient` stays."""
    for place, word in enumerate(predicate):
        if bare(word) != "any" or (place and is_preposition(predicate[place - 1])):
            continue
        following = bare(predicate[place + 1]) if place + 1 < len(predicate) else ""
        compares = following in ("better", "worse", "more", "less", "longer", "different", "safer")
        return [*predicate[:place], *([] if compares else ["some"]), *predicate[place + 1 :]]
    return predicate


def _has_participle(predicate: list[str]) -> bool:
    """Whether `has` is an auxiliary here (`has | been tested`) and not the verb (`has | a role`)."""
    if bare(predicate[0]) in ("a", "an", "any", "some", "the", "no"):
        return False
    return any(is_participle(word) for word in predicate[:4])
