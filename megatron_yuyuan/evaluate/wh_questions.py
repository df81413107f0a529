"""A question with what, which, who, where, when, why or how, and a candidate answer to it.

The answer takes the place that the question leaves open: the subject's (`What causes gout?`), the
object's (`What does aspirin inhibit?`), behind a preposition left alone (`... associated with?`), or
the end (`Where is insulin produced?`).
"""

import re

from megatron_yuyuan.evaluate import lexicon
from megatron_yuyuan.evaluate.boundary import boundaries, finite_verbs
from megatron_yuyuan.evaluate.clauses import DENYING, Clause, clause, denial, denied_twice, refusal
from megatron_yuyuan.evaluate.english import (
    bare,
    base_form,
    is_adjective,
    is_adverb,
    is_base_verb,
    is_participle,
    is_plural_phrase,
    is_preposition,
    is_progressive,
)

PLURAL_OF = {"is": "are", "was": "were", "does": "do", "has": "have"}
SINGULAR_OF = {plural: singular for singular, plural in PLURAL_OF.items()}
SHARES = frozenset("percentage percent proportion fraction share".split())
"""`What percentage of patients` asks what `how many` asks, in other words than a number."""
REASONS = frozenset("because to due as since for owing so in by through".split())
MONTHS = frozenset(
    "january february march april may june july august september october november december".split()
)


def is_sentence(answer: str) -> bool:
    """Whether a candidate answer says it all: `The cat eats fish.`, and not `fish`, `eats fish.` or `those
    that it catches.`"""
    verbs = finite_verbs(answer.split(), alone=False)
    return answer.rstrip().endswith(".") and any(place > 0 for place in verbs)


def wh_clauses(words: list[str], answer: str) -> list[Clause]:
    """The readings of a wh-question (its words) with its candidate answer, the likeliest first.

    Raises DataError: no answer; a question that denies already; no place for the answer.
    """
    question = " ".join(words) + "?"
    if not answer:
        raise refusal(
            question,
            "it does not ask yes or no",
            "a candidate answer beside the question: --answer TEXT, or `answer` in a file",
        )
    contracted = re.fullmatch(r"(\w+)['’]s", words[0])
    words = [contracted[1], "is", *words[1:]] if contracted else words
    kind, rest = bare(words[0]), words[1:]
    if not rest or bare(rest[0]) in ("about", "if", "not", "to", "else"):
        raise refusal(question, "it names no subject and predicate")
    denied = denial(rest, DENYING | {"not"})
    if denied:
        raise denied_twice(question, denied)
    share = bare(rest[0]) in SHARES and "of" in map(bare, rest[1:2])
    if kind in ("what", "which") and share:
        found = _quantity("many", rest[1:], answer)
    elif kind in ("what", "which", "who", "whom"):
        found = _subject_or_object(kind, rest, answer.split())
    elif kind in ("where", "when", "why", "how"):
        found = _circumstance(kind, rest, answer)
    else:
        found = []
    if not found:
        raise refusal(question, "no place was found where the candidate answer belongs")
    return found


def _subject_or_object(kind: str, rest: list[str], answer: list[str]) -> list[Clause]:
    """what, which, who: `rest` is [noun] + verb + the other words."""
    places = finite_verbs(rest, alone=kind in ("what", "who"))
    return [one for place in places for one in _with_verb_at(place, kind, rest, answer)]


def _with_verb_at(place: int, kind: str, rest: list[str], answer: list[str]) -> list[Clause]:
    noun, verb, tail = rest[:place], bare(rest[place]), rest[place + 1 :]
    if verb not in lexicon.AUXILIARIES:
        base, auxiliary = _finite(verb)
        predicate = [*_adverbs_at_end(noun), base, *tail]
        return [clause(_agree(auxiliary, answer), answer, predicate)]
    if not tail:
        return []
    if kind == "what" and not noun and "do" in map(bare, tail):
        return _done(verb, tail, answer)
    if verb in lexicon.DO:
        return _object(verb, tail, answer)
    if is_preposition(tail[-1]) and len(tail) > 2 and not _is_predicate(verb, tail):
        return _object(verb, tail, answer)
    if _is_predicate(verb, tail):
        return [clause(_agree(verb, answer), answer, tail)]
    if verb in lexicon.BE and not noun and kind == "what":
        return [clause(verb, tail, answer)]
    if verb in lexicon.BE and not noun:
        return [clause(_agree(verb, answer), answer, tail)]
    return _object(verb, tail, answer)


def _adverbs_at_end(noun: list[str]) -> list[str]:
    """`Which drug | most often | causes gout`: these belong to the verb."""
    end = len(noun)
    while end and is_adverb(noun[end - 1]) and bare(noun[end - 1]) != "both":
        end -= 1
    return noun[end:]


def _done(auxiliary: str, tail: list[str], answer: list[str]) -> list[Clause]:
    """`What does aspirin do?` asks for the verb and all behind it."""
    verb = base_form(answer[0])
    if bare(tail[-1]) != "do" or len(tail) < 2 or verb is None:
        return []
    return [clause(auxiliary, tail[:-1], [verb[0], *answer[1:]])]


def _finite(verb: str) -> tuple[str, str]:
    """(base form, auxiliary) of a verb that `finite_verbs` has found."""
    known = base_form(verb)
    assert known is not None
    return known


def _is_predicate(auxiliary: str, tail: list[str]) -> bool:
    """Whether these words follow the answer (`Which drug | is | used for X`), not a subject."""
    if not tail:
        return False
    start = next((i for i, word in enumerate(tail) if not is_adverb(word)), 0)
    word, after = tail[start], tail[start + 1] if start + 1 < len(tail) else ""
    if auxiliary in lexicon.MODALS:
        return is_base_verb(word) and not is_plural_phrase([word])
    if auxiliary in lexicon.HAVE:
        return is_participle(word)
    closed = not after or is_preposition(after) or bare(after) in ("to", "than") or is_adverb(after)
    verbal = is_participle(word) or is_progressive(word) or is_adjective(word)
    return is_preposition(word) or (closed and verbal)


def _object(auxiliary: str, tail: list[str], answer: list[str]) -> list[Clause]:
    """The answer as object."""
    found = boundaries(auxiliary, tail)
    return [clause(auxiliary, tail[:place], _with_object(tail[place:], answer)) for place in found]


def _with_object(predicate: list[str], answer: list[str]) -> list[str]:
    """The answer behind a preposition left alone, else behind the verb."""
    gap = len(predicate)
    if not is_preposition(predicate[-1]):
        gap = next((i for i, word in enumerate(predicate) if not is_adverb(word)), 0) + 1
        while gap < len(predicate) and is_participle(predicate[gap]):
            gap += 1
        if gap < len(predicate) and not is_preposition(predicate[gap]):
            gap = len(predicate)
    return [*predicate[:gap], *answer, *predicate[gap:]]


def _circumstance(kind: str, rest: list[str], answer: str) -> list[Clause]:
    """where, when, why, how: the answer at the end; how many, how much, how common: in its place."""
    if kind == "how" and bare(rest[0]) in ("many", "much"):
        return _quantity(bare(rest[0]), rest[1:], answer)
    if kind == "how" and bare(rest[0]) not in lexicon.AUXILIARIES:
        measure, rest = bare(rest[0]), rest[1:]
        if len(rest) > 1 and bare(rest[0]) in lexicon.BE and measure not in ("often", "long"):
            return [clause(bare(rest[0]), rest[1:], answer.split())]
    elif bare(rest[0]) in lexicon.AUXILIARIES:
        answer = _placed(kind, answer)
    if len(rest) < 2 or bare(rest[0]) not in lexicon.AUXILIARIES:
        return []
    auxiliary, tail = bare(rest[0]), rest[1:]
    found = []
    for place in boundaries(auxiliary, tail):
        states = tail[place:]
        while len(states) > 1 and is_adverb(states[0]):
            states = states[1:]
        stated = kind == "why" or is_participle(states[0]) or is_adjective(states[0])
        if auxiliary not in lexicon.BE or stated:
            found.append(clause(auxiliary, tail[:place], [*tail[place:], *answer.split()]))
    if not found and auxiliary in lexicon.BE:
        return [clause(auxiliary, tail, answer.split())]
    return found


def _placed(kind: str, answer: str) -> str:
    """The answer with the word it needs at the end of a clause: `the pancreas` -> `in the pancreas`."""
    first = bare(answer.split()[0])
    if kind == "why":
        return answer if first in REASONS else f"because {answer}"
    if is_preposition(first) or is_adverb(first) or first in lexicon.RELATIVES | {"every", "once"}:
        return answer
    if kind == "where" or (
        kind == "when" and (first in MONTHS or re.fullmatch(r"\d{4}s?", answer))
    ):
        return f"in {answer}"
    return f"by {answer}" if kind == "how" else answer


def _quantity(kind: str, rest: list[str], answer: str) -> list[Clause]:
    """`How many valves are there in the heart?` + `four`; `how much` puts `of` before its noun."""
    amount = [*answer.split(), *(["of"] if kind == "much" else [])]
    places = [place for place in finite_verbs(rest, alone=False) if place]
    return [one for place in places for one in _counted(amount, rest, place)]


def _counted(amount: list[str], rest: list[str], place: int) -> list[Clause]:
    counted = [*amount, *rest[:place]]
    verb, tail = bare(rest[place]), rest[place + 1 :]
    if verb in lexicon.BE and tail and bare(tail[0]) == "there":
        there = " ".join([*counted, *tail[1:]])
        return [Clause(f"there {verb} {there}", f"there {verb} not {there}")]
    if verb in lexicon.AUXILIARIES:
        if verb not in lexicon.DO and _is_predicate(verb, tail):
            return [clause(verb, counted, tail)]
        return _object(verb, tail, counted)
    base, auxiliary = _finite(verb)
    return [clause(auxiliary, counted, [base, *tail])]


def _agree(auxiliary: str, subject: list[str]) -> str:
    """The auxiliary in the number of its subject: `is` -> `are`."""
    if is_plural_phrase(subject):
        return PLURAL_OF.get(auxiliary, auxiliary)
    return SINGULAR_OF.get(auxiliary, auxiliary)
