"""Where the subject of a question ends and its predicate begins.

English questions put an auxiliary in front and leave subject and predicate unmarked behind it:
`Is | obesity in childhood | a risk factor`. Every place is given a cost by the words around it: what
may begin a predicate after this auxiliary, what no subject may end with, and whether the number of
the subject's head fits the auxiliary. The cheapest place is the reading; places within MARGIN of it
are other readings, among which a language model may choose. The costs are judgements of ours.
"""

from megatron_yuyuan.evaluate import lexicon
from megatron_yuyuan.evaluate.english import (
    bare,
    base_form,
    is_adjective,
    is_adverb,
    is_base_verb,
    is_participle,
    is_plural,
    is_plural_phrase,
    is_preposition,
    is_progressive,
    is_pure_verb,
)

IMPOSSIBLE = 100.0
LIMIT = 3.9
"""A reading that costs more is no reading."""
MARGIN = 1.0
OF_VALUE = frozenset(
    "value benefit use importance significance interest help concern relevance service any".split()
)
STATING = lexicon.DEGREES | set("better worse still always not also only really".split())
"""Adverbs that open a predicate: `more common`, `better than placebo`."""
NO_ENDING = (
    lexicon.PREPOSITIONS
    | lexicon.CONJUNCTIONS
    | lexicon.RELATIVES
    | (lexicon.DETERMINERS - lexicon.PRONOUNS)
    | {"to", "being", "having"}
)
"""No subject ends with these."""
AT_RISK = frozenset("risk increased high higher greater low lower stake particular the".split())


def boundaries(auxiliary: str, words: list[str]) -> list[int]:
    """Lengths of the subject, the likeliest reading first; empty: no reading.

    `auxiliary` in lower case and positive (`is`, `does`, `can`, ...); `words` are those behind it.
    """
    if len(words) == 2 and not _ending(words, 1):
        return [1]  # `Is influenza airborne`: there is no other place
    return _likeliest(_costs(auxiliary, words))


def finite_verbs(words: list[str], alone: bool) -> list[int]:
    """Where the verb stands behind `which`, `what`, `who`, the likeliest reading first: `Which | gene
    changes | cause gout`, `Which gene | changes | cause gout`.

    `words` are those behind the question word; `alone`: it may be the subject without a noun. No verb
    is looked for behind an auxiliary, nor in a relative clause, which takes the next one for itself.
    """
    costs: dict[int, float] = {}
    for place, word in enumerate(words):
        if bare(word) in lexicon.RELATIVES:
            break
        if bare(word) in lexicon.AUXILIARIES:
            costs[place] = 0.0
            break
        known = base_form(word) if place or alone else None
        if known is None:
            continue
        base, auxiliary = known
        after = words[place + 1 :]
        cost = _verb(base, after) + _noun_before(auxiliary, words, place)
        if auxiliary == "did" and after and is_preposition(after[0]):
            cost += 1.5  # `a hormone released by the liver | lowers ...`
        if costs and not after:
            cost += 2.0  # `genes | cause bone changes`
        costs[place] = cost
        if is_pure_verb(base) and cost < MARGIN:
            break
    return _likeliest(costs)


def _noun_before(auxiliary: str, words: list[str], place: int) -> float:
    """The cost of words[:place] as the noun of `which` and of `what`, which may stand without one."""
    if not place:
        return IMPOSSIBLE if auxiliary == "do" else 0.0
    one_of = bare(words[0]) == "of"  # `Which of the drugs causes ...`
    number = 0.0 if one_of else _number(auxiliary, words[:place])
    return _ending(words, place) + number + 0.02 * place


def _likeliest(costs: dict[int, float]) -> list[int]:
    """The places of the cheapest reading and of those within MARGIN of it."""
    best = min(costs.values(), default=IMPOSSIBLE)
    if best > LIMIT:
        return []
    return sorted((i for i in costs if costs[i] <= best + MARGIN), key=lambda i: (costs[i], i))


def _costs(auxiliary: str, words: list[str]) -> dict[int, float]:
    costs = {}
    verbs_owed = 0  # a relative clause in the subject takes the next verb for itself
    depth = 0
    for place, word in enumerate(words):
        depth += word.count("(") - word.count(")")
        if bare(word) in ("who", "that", "which", "whose", "when", "if") and place:
            verbs_owed = 1
        if not place or depth > 0 or word.startswith("("):
            continue
        start = _opening(auxiliary, words, place) + (3.0 if verbs_owed else 0.0)
        if verbs_owed and (is_base_verb(word) or is_participle(word) or bare(word) in lexicon.BE):
            verbs_owed = 0
        if start < IMPOSSIBLE:
            costs[place] = start + _ending(words, place) + _number(auxiliary, words[:place])
            costs[place] += 0.02 * place
    return _prefer_later_statement(auxiliary, words, costs)


def _opening(auxiliary: str, words: list[str], place: int) -> float:
    """The cost of words[place:] as what follows the subject after this auxiliary."""
    if _is_letter(words, place):
        return IMPOSSIBLE
    start = place
    while start < len(words) - 1 and is_adverb(words[start]):
        start += 1
    word, after = words[start], words[start + 1 :]
    if auxiliary in lexicon.BE:
        return min(_after_be(words, place), _after_be(words, start))
    if auxiliary in lexicon.HAVE:
        return _after_have(word, after)
    return _verb(word, after)


def _verb(word: str, after: list[str]) -> float:
    """A base form, as `does` and `can` want one."""
    name, following = bare(word), bare(after[0]) if after else ""
    if name in ("be", "have", "do"):
        return -1.0
    if is_pure_verb(name):
        return 0.0
    if _inflected(name) and after and not is_preposition(following):
        return 1.3  # `Does X increases Y` is written often enough
    if not is_base_verb(name):
        return IMPOSSIBLE
    if name == "help" and is_base_verb(following):
        return -0.5
    cost = 0.3 if name in lexicon.MOSTLY_VERBS else 1.0
    cost += 2.0 if word.endswith(",") else 0.0
    if not after:
        return cost + (-0.8 if name in lexicon.AT_THE_END else 4.0)
    return cost + _object_of_verb_or_noun([bare(word) for word in after])


def _inflected(name: str) -> bool:
    found = base_form(name)
    return found is not None and found[1] == "does"


def _object_of_verb_or_noun(after: list[str]) -> float:
    """How little the words behind `increase`, `stress`, ... make a verb of it."""
    following = after[0]
    if following in lexicon.DETERMINERS | lexicon.PRONOUNS:
        return -0.6
    if following == "of" or is_pure_verb((base_form(following) or ("",))[0]):
        return 2.0
    if is_base_verb(following) and following not in lexicon.ADJECTIVES:
        return 0.0 if len(after) > 1 and is_preposition(after[1]) else 0.7
    if following in ("up", "out", "off", "down"):
        return 0.0
    return 0.6 if is_preposition(following) or following in lexicon.CONJUNCTIONS else 0.0


def _after_have(word: str, after: list[str]) -> float:
    """A past participle; or the noun phrase of a main verb `have`: `has it a role`."""
    if bare(word) in ("been", "become", "had", "shown"):
        return -1.0
    if is_participle(word):
        return 0.5 if after else 0.0
    return 1.8 if bare(word) in ("a", "an", "any", "some") else IMPOSSIBLE


def _after_be(words: list[str], place: int) -> float:
    """An article, a degree, a participle, an adjective, a noun phrase, a preposition."""
    name, after = bare(words[place]), words[place + 1 :]
    following = bare(after[0]) if after else ""
    closed = _closed(words, place)
    if name in lexicon.ARTICLES or name in ("one", "both", "any"):
        return 3.0 if _awaits_object(words[:place]) else 0.3
    if name == "worth" or (name == "part" and following == "of"):
        return -0.2
    if name in STATING:
        return 0.2 if after else 1.0
    if is_adverb(name) and name not in ("alone", "enough"):
        return 3.4 if is_preposition(following) else 0.3 if following else IMPOSSIBLE
    if name == "being":
        return -0.5
    if is_participle(name):
        complemented = name in lexicon.COMPLEMENTED and is_adjective(following)
        return 0.5 if closed or complemented else 1.6 if following in lexicon.DETERMINERS else 3.0
    if name.endswith("ing") and len(name) > 4 and not is_preposition(name):
        verbal = is_progressive(name) or is_plural(words[place - 1])
        return 4.0 if not verbal else 1.2 if closed else 1.8
    if is_adjective(name) and closed:
        return 0.9 if name in lexicon.POSTNOMINAL and after else 0.0
    if name == "to":
        return 3.0 if following and is_base_verb(following) else IMPOSSIBLE
    if is_preposition(name):
        return _prepositional(name, [bare(word) for word in after])
    return _noun_phrase(words, place)


def _closed(words: list[str], place: int) -> bool:
    """Whether what follows words[place] shows that it describes no noun behind it: `safe in ...`."""
    if place == len(words) - 1 or words[place].endswith(","):
        return True
    following = bare(words[place + 1])
    closing = lexicon.CONJUNCTIONS | lexicon.RELATIVES | {"to", "because", "prior"}
    if is_preposition(following) or following in closing:
        return True
    return is_adverb(following) and following not in ("early", "late")


def _awaits_object(words: list[str]) -> bool:
    """Whether an article behind these words belongs to their last verb: `controlling | the risk`."""
    last = words[-1]
    infinitive = is_base_verb(last) and len(words) > 1 and bare(words[-2]) == "to"
    return infinitive or is_progressive(last) or is_participle(last)


def _noun_phrase(words: list[str], place: int) -> float:
    """A noun phrase without article: `statins | inhibitors of X`, `measles | viral diseases`."""
    if is_preposition(words[place]) or bare(words[place]) in lexicon.CONJUNCTIONS | {"to"}:
        return IMPOSSIBLE
    symbol = any(letter.isdigit() for letter in words[place]) or words[place].isupper()
    nouns = [word for word in words[:place] if not word.startswith("(")] or words[:place]
    plural = is_plural(nouns[-1]) or (is_plural_phrase(nouns) and is_adjective(words[place]))
    return (2.4 if plural else 4.0) + (1.5 if symbol else 0.0)


def _prepositional(name: str, after: list[str]) -> float:
    if not after:
        return IMPOSSIBLE
    if name == "of":
        return 0.3 if OF_VALUE & set(after[:3]) else IMPOSSIBLE
    if name == "at":
        return 0.4 if AT_RISK & set(after[:1]) and "risk" in after[:4] else 3.5
    if name == "on" and after[:2] in (["the", "rise"], ["the", "increase"], ["the", "decline"]):
        return 0.2
    if name in ("without", "like", "beyond", "under", "worth", "within"):
        return 2.5
    if name == "in" and after[0] in ("need", "danger", "vogue", "favour", "favor", "accordance"):
        return 0.4
    return 3.2


def _is_letter(words: list[str], place: int) -> bool:
    """The `A` of `hepatitis A`."""
    return words[place] == "A" and place > 0 and bare(words[place - 1]) in lexicon.LETTERED


def _ending(words: list[str], place: int) -> float:
    """The cost of words[:place] as a whole subject, by its last word."""
    last, name = words[place - 1], bare(words[place - 1])
    if _is_letter(words, place - 1):
        return 0.0
    if name in ("this", "that", "all", "both"):
        return 1.5
    if name in NO_ENDING or last.endswith(("'s", "’s", "'", "’", "-")):
        return IMPOSSIBLE
    commas = sum(word.endswith(",") for word in words[:place])
    cost = 0.0 if not last.endswith(",") else 3.0 if commas % 2 else 0.3  # `X, a Y, | is`
    if place > 1 and name in ("it", "they", "we", "he", "she", "you"):
        return cost + 4.0
    if name in lexicon.DEGREES | {"not", "still", "always", "also", "really"}:
        return cost + 4.0
    if is_adverb(name) and name not in ("alone", "again"):
        return cost + 2.5
    if place > 1 and bare(words[place - 2]) == "to" and is_base_verb(name):
        return cost + 0.3
    if is_pure_verb(name) and name not in ("cure", "lead"):
        return cost + 2.0
    if is_adjective(name) and name not in ("young", "old", "elderly", "poor", "obese", "ill"):
        return cost + 1.5
    return cost + (1.0 if is_participle(name) else 0.0)


def _number(auxiliary: str, subject: list[str]) -> float:
    """The cost of a head whose number the auxiliary contradicts."""
    plural = is_plural_phrase(subject)
    if auxiliary in ("is", "does", "has", "was") and plural:
        return 2.5
    if auxiliary in ("are", "do", "have", "were") and plural is False:
        return 3.0
    return 0.0


def _prefer_later_statement(
    auxiliary: str, words: list[str], costs: dict[int, float]
) -> dict[int, float]:
    """`chemotherapy given before surgery | effective`: a participle with its preposition describes
    the subject where something behind it states more."""
    if auxiliary not in lexicon.BE | lexicon.HAVE:
        return costs
    for place in [i for i in costs if is_participle(words[i])]:
        describes = bare(words[place]) in lexicon.DESCRIBING
        later = [
            costs[i] for i in costs if i > place + 1 and (describes or not is_participle(words[i]))
        ]
        if later and min(later) <= (0.9 if describes else 0.6):
            costs[place] += 0.8
    return costs
