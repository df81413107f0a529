"""Questions that no single statement answers: two at once, either-or, about the person asked."""

import re

from megatron_yuyuan.evaluate import lexicon
from megatron_yuyuan.evaluate.clauses import refusal

AUXILIARY = "|".join(sorted(lexicon.AUXILIARIES))
SECOND_QUESTION = re.compile(
    r"\bif (?:so|not|yes),?\b(?! [a-z]+ed)"
    rf"|\b(?:and|or|but),? (?:{AUXILIARY}) (?:it|they|this|these|we|there|he|she|the)\b"
    r"|\b(?:and|or|but),? (?:what|why|how|when|where|who)\b"
    r"|, (?:and|or|but) (?:is|are|does|do|did|can|should|will)\b",
    re.IGNORECASE,
)
ABOUT_THE_READER = re.compile(
    r"^(?:do|did|are|would) you (?:know|think|believe|agree|remember|aware|sure|say)\b"
    r"|^(?:can|could|would|will) (?:you|someone|anyone) (?:please|explain|tell|describe|list|name|give"
    r"|recommend|suggest|help|show|summari[sz]e)\b",
    re.IGNORECASE,
)
OPPOSITES = [
    pair.split()
    for pair in """benign malignant|physical psychological|friend foe|cause consequence|cause effect
cause result|cause symptom|myth reality|myth fact|fact fiction|fact artefact|fact artifact|good bad
good evil|help hindrance|harmful beneficial|helpful harmful|harmful helpful|beneficial harmful
safe dangerous|safe harmful|safe risky|better worse|more less|higher lower|early late|early delayed
acute chronic|primary secondary|local systemic|genetic environmental|necessary unnecessary
useful useless|increase decrease|increase reduce|reduce increase|decrease increase|improve worsen
improve impair|protective harmful|risk benefit|boon bane|blessing curse|open laparoscopic|medical surgical
direct indirect|monogenic polygenic|dominant recessive|active passive|predictor consequence|new old
marker mediator|marker cause|bystander culprit|causal casual|positive negative|before after|panacea placebo
mendelian multifactorial|normal abnormal|real artefact|one two|single double|male female|men women
lead follow|prevent promote|promote prevent|promote inhibit|help hurt|help hinder|hurt help|driver passenger
symmetric asymmetric|tumor-suppressive oncogenic|oncogenic tumor-suppressive|oncogene suppressor""".replace(
        "\n", "|"
    ).split("|")
]
"""Words that, joined by `or`, ask which of the two."""
TIDY_OR = re.compile(r",? or not$|,? yes or no$", re.IGNORECASE)
WHICH_OF_TWO = re.compile(
    r"\bor (?:an?|the|just|merely|only|simply|rather|is|are|does|do|another|both|neither|vice)\b",
    re.IGNORECASE,
)
COMPARED = re.compile(
    r"\b(?:\w+er|better|worse|best|preferable|superior|more \w+|less \w+|the \w+est)\b(?! (?:than|to)\b)"
    r"(?!.* than\b)",
    re.IGNORECASE,
)


def check_one_question(text: str) -> None:
    """Raises DataError for a text that asks nothing, more than one thing, or which of two."""
    asked, mark, behind = text.partition("?")
    if not mark or len(asked) < 4:
        raise refusal(text, "there is no question in it: none ends with ?")
    if "?" in behind:
        raise refusal(text, "it asks more than one question", "one question at a time")
    question = _from_auxiliary(asked)
    if SECOND_QUESTION.search(question):
        raise refusal(text, "it asks more than one question", "one question at a time")
    if ABOUT_THE_READER.search(question):
        raise refusal(text, "it is about what the person asked can say", "the question itself")
    if _asks_which(question):
        raise refusal(
            text, "it asks which of several is right, not whether one is", "one question for each"
        )
    if re.search(r", (?:\w+n['’]t|right|correct)(?: \w+)?$", asked, re.IGNORECASE):
        raise refusal(text, "a statement with a question behind it was not asked plainly")


def without_or_not(words: list[str]) -> list[str]:
    """`Is it safe or not` asks what `Is it safe` asks."""
    return TIDY_OR.sub("", " ".join(words)).split(" ")


def _from_auxiliary(asked: str) -> str:
    """The text from its question on: behind the last colon, dash or full stop."""
    return re.split(r": | - | – | — |\. ", asked)[-1].strip()


def _asks_which(question: str) -> bool:
    """Either-or: `a cause or a consequence`, `benign or malignant`, `Is A or B safer`."""
    question = TIDY_OR.sub("", question)
    if " or " not in question:
        return False
    first = question.split(" ")[0].lower().removesuffix("n't")
    if first not in lexicon.AUXILIARIES:
        return first not in lexicon.WH_WORDS and ", " not in question
    left, right = question.lower().split(" or ", 1)
    opposed = any(a in left.split()[-4:] and b in right.split()[:4] for a, b in OPPOSITES)
    if opposed or re.search(r"\bor be\b", question):
        return True
    if first in lexicon.BE | {"should"} and WHICH_OF_TWO.search(question):
        return True
    if first not in lexicon.BE:
        return False
    short = len(left.split())
    compared = COMPARED.search(right) and not COMPARED.search(left)
    return bool(short <= 4 and compared) or (short <= 5 and len(right.split()) == 1)
