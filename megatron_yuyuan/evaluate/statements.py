"""A question becomes two statements: what it asks, affirmed and denied.

    Does aspirin prevent stroke?    Aspirin prevents stroke.    Aspirin does not prevent stroke.

Rules and a lexicon, no model: the opening word says what kind of question it is, boundary.py where
its subject ends, english.py how verbs inflect. Where several readings are about as good, a `scorer`
(the mean log-likelihood of texts under a language model) takes the likeliest. What no rule covers is
refused with the reason: a wrong statement would be judged as if it had been asked.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_yuyuan.errors import DataError
from megatron_yuyuan.evaluate import lexicon
from megatron_yuyuan.evaluate.boundary import boundaries
from megatron_yuyuan.evaluate.clauses import Clause, clause, denial, refusal
from megatron_yuyuan.evaluate.english import (
    bare,
    capitalise,
    head_of,
    is_adjective,
    is_plural_phrase,
    is_preposition,
)
from megatron_yuyuan.evaluate.refused import check_one_question, without_or_not
from megatron_yuyuan.evaluate.wh_questions import is_sentence, wh_clauses

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""Texts -> mean log-likelihood of each; the higher the likelier."""
HAND_JUDGED = (5, 200)
"""Wrong statements among those that were judged by hand; docs/fact_judge.md says how."""
SEPARATORS = r"(?:: |; |\. |\? |! | - |- | – | — |--| -- )"
OPENERS = "|".join(sorted(lexicon.AUXILIARIES))
CONTRACTED = r"(?:n't|n’t)"
INDEFINITE = {"someone", "anyone", "everyone", "nobody"}
CANNOT = {"can't": "can", "cannot": "can", "won't": "will", "shan't": "shall"}


@dataclass(frozen=True)
class Statements:
    """What a question asks, as two sentences of which one is true."""

    affirmative: str
    negative: str


def rewrite(question: str, answer: str = "", scorer: Scorer | None = None) -> Statements:
    """The statements of a question: yes or no, or a wh-question with a candidate `answer`.

    Without a scorer the first reading is taken. Raises DataError: the question is refused.
    """
    found = readings(question, answer)
    if len(found) == 1 or scorer is None:
        return found[0]
    scores = scorer([reading.affirmative for reading in found])
    return found[max(range(len(found)), key=lambda i: scores[i])]


def is_yes_no(question: str) -> bool:
    """Whether a question that can be rewritten is one of yes or no, and takes no answer into its sentence."""
    try:
        readings(question)
    except DataError:
        return False
    return True


def readings(question: str, answer: str = "") -> list[Statements]:
    """Every reading worth a choice, the likeliest by the rules first. Raises DataError."""
    text = _tidy(question)
    check_one_question(text)
    topic, lead, asked = _split(text.split("?")[0])
    words = asked.split()
    opener = _auxiliary(words[0]) if words else ""
    if lead and not topic and _names(lead) and {"it", "they"} & {bare(w) for w in words[1:2]}:
        topic, lead = lead, ""  # `Suturing of the septum, is it painful`
    if opener:
        topic, clauses = _yes_no(opener, words, topic)
    elif words and bare(words[0]).split("'")[0].split("’")[0] in lexicon.WH_WORDS:
        if is_sentence(answer):
            why = f"{answer.strip()!r} is a sentence, and only a phrase has a place in the question"
            raise refusal(question, why, "the phrase alone that answers it")
        clauses = wh_clauses(words, answer.strip().rstrip("."))
    elif topic and _is_noun_phrase(words):
        subject, words[0] = topic.split(), words[0].lower()
        clauses = [clause("are" if is_plural_phrase(subject) else "is", subject, words)]
        topic = ""
    else:
        raise refusal(
            question,
            "it does not open as a question of yes or no, or with what, which, who, when, ...",
        )
    front = (f"{topic}: " if topic else "") + (f"{lead}, " if lead else "")
    unique = dict.fromkeys(clauses)
    return [
        Statements(_sentence(front + one.affirmative), _sentence(front + one.negative))
        for one in unique
    ]


def _tidy(question: str) -> str:
    """One line, without the brackets and quotes that stand around a translated title."""
    text = " ".join(question.replace("??", "?").split())
    text = re.sub(r"\s+\?", "?", text)
    if text.startswith("[") and "]" in text:
        text = text[1:].replace("]", "", 1)
    return text.replace('?"', "?").strip('"“” ')


def _split(text: str) -> tuple[str, str, str]:
    """(topic, lead, question) of a text before its question mark.

    `Statins in sepsis: do they help` has a topic, `In children, is fever harmful` a lead.
    """
    if _opens(text):
        return "", "", text
    topic = ""
    for separator in reversed(list(re.finditer(SEPARATORS, text))):
        after = text[separator.end() :].strip()
        if _opens(after) or _opens_behind_comma(after) or bare(after.split(" ")[0]) in ("a", "an"):
            topic, text = text[: separator.start()].strip(" :-–—"), after
            break
    if _opens(text):
        return topic, "", text
    lead = _opens_behind_comma(text)
    return (topic, text[:lead], text[lead + 2 :]) if lead else (topic, "", text)


def _is_noun_phrase(words: list[str]) -> bool:
    """`a risk factor for asthma`, as what a title may be; not `a role in asthma`."""
    said = bare(head_of(words)) not in lexicon.NOT_SAID_OF_THINGS
    return said and bare(words[0]) in ("a", "an") and "or" not in words


def _names(lead: str) -> bool:
    """Whether a lead is a thing, and not `in children` or `when X has Y`."""
    return not is_preposition(lead.split()[0]) and bare(lead.split()[0]) not in lexicon.RELATIVES


def _opens(text: str) -> bool:
    """Whether a text begins as a question does: `Is`, `Don't`, `What`, `How many`; not `When X has`."""
    first, _, rest = text.partition(" ")
    if _auxiliary(first):
        return True
    name, following = bare(first), bare(rest.split(" ")[0])
    if name in ("when", "where", "why", "while"):
        return following in lexicon.AUXILIARIES or bool(_auxiliary(following))
    return name.split("'")[0].split("’")[0] in lexicon.WH_WORDS


def _opens_behind_comma(text: str) -> int:
    """Where the comma stands behind which a yes/no question begins; 0: nowhere."""
    found = re.search(rf", (?=(?:{OPENERS}){CONTRACTED}? )", text, re.IGNORECASE)
    return found.start() if found else 0


def _auxiliary(word: str) -> str:
    """`Isn't` -> `is`, `Can't` -> `can`, `Does` -> `does`; other words -> ``."""
    name = bare(word).replace("’", "'")
    name = CANNOT.get(name, name.removesuffix("n't"))
    return name if name in lexicon.AUXILIARIES else ""


def _yes_no(auxiliary: str, words: list[str], topic: str) -> tuple[str, list[Clause]]:
    """(topic that is left, clauses) of auxiliary + subject + predicate."""
    words = [word for word in without_or_not(words[1:]) if word]
    if words and bare(words[0]) == "not" and not denial(words[:2]):  # `not only` stays
        words = words[1:]
    if len(words) < 2:
        raise refusal(" ".join([auxiliary, *words]), "subject or predicate is missing")
    if bare(words[0]) == "there" and auxiliary in lexicon.BE:
        return topic, [clause(auxiliary, words[:1], words[1:])]
    if _means_topic(auxiliary, words, topic):
        return "", [clause(auxiliary, topic.split(), words[1:])]
    first, second = bare(words[0]), bare(words[1])
    described = is_preposition(words[1]) or second in lexicon.RELATIVES
    if first in lexicon.PRONOUNS - {"one", "these", "those"} and not (
        described and first in INDEFINITE  # `everyone with HPV | get cancer`
    ):
        return topic, [clause(auxiliary, words[:1], words[1:])]
    doubled = _second_be(auxiliary, words)
    if doubled:
        again = bare(words[doubled])
        return topic, [clause(again, words[:doubled], words[doubled + 1 :])]
    found = boundaries(auxiliary, words)
    if not found:
        raise refusal(
            " ".join([auxiliary, *words]), "no place was found where subject and predicate meet"
        )
    return topic, [clause(auxiliary, words[:place], words[place:]) for place in found]


def _second_be(auxiliary: str, words: list[str]) -> int:
    """Where `Is gout is a disease` says its verb again; 0: nowhere."""
    for place, word in enumerate(words[:-1]):
        if bare(word) in lexicon.RELATIVES or auxiliary not in lexicon.BE:
            return 0
        if place and bare(word) in lexicon.BE:
            return place
    return 0


def _means_topic(auxiliary: str, words: list[str], topic: str) -> bool:
    """Whether the subject is a pronoun that stands for the title: `Statins in sepsis: do they ...`."""
    name, subject = bare(words[0]), topic.split()
    if not topic or name not in ("it", "they", "this", "these") or ": " in topic:
        return False
    if bare(head_of(subject)) in lexicon.STUDY_WORDS or lexicon.BE & {bare(w) for w in subject}:
        return False  # the title of a study, or a sentence
    if name in ("this", "these") and boundaries(auxiliary, words)[:1] != [1]:
        return False
    if name == "it" and _is_expletive(words):
        return False
    return is_plural_phrase(subject) == (name in ("they", "these"))


def _is_expletive(words: list[str]) -> bool:
    """`it possible to cure X`, `it matter whether X`: this `it` stands for nothing."""
    fits = is_adjective(words[1]) or bare(words[1]) in ("time", "matter", "help", "be")
    return fits and bool({"to", "that", "whether", "if"} & {bare(word) for word in words[2:4]})


def _sentence(text: str) -> str:
    return capitalise(" ".join(text.split()).rstrip(" .,;:")) + "."
