"""How tokenizers divide the same texts: their length in tokens, whole words, medical terms."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from megatron_yuyuan.data.files import cannot_read
from megatron_yuyuan.data.tokenizer import Tokenizer
from megatron_yuyuan.data.tokenizer_base import refuse_surrogates
from megatron_yuyuan.errors import DataError

MEDICAL_TERMS = tuple(
    """
    acetaminophen adenocarcinoma allele alzheimer amoxicillin aneurysm angiogenesis antibiotic
    antibody anticoagulant antihypertensive apoptosis arrhythmia arthritis aspirin asthma
    atherosclerosis atrial autoimmune bacteremia benzodiazepine bilirubin biomarker biopsy
    bronchitis carcinoma cardiomyopathy cardiovascular chemotherapy cholesterol cirrhosis colitis
    comorbidity contraindicated corticosteroid creatinine cytokine dementia dermatitis diabetes
    dialysis diuretic dyspnea edema electrocardiogram embolism encephalitis endocarditis
    endoscopy epidemiology epilepsy etiology fibrosis gastrointestinal genotype glaucoma glioblastoma
    glomerulonephritis glucose hematoma hemoglobin hemorrhage hepatitis hepatocellular
    hypercholesterolemia hyperglycemia hypertension hypothyroidism ibuprofen immunodeficiency
    immunotherapy infarction inflammation influenza insulin ischemia leukemia lymphoma macrophage
    mastectomy melanoma meningitis metabolism metastasis metformin mitochondrial myocardial nephropathy
    neuropathy obesity oncology osteoporosis pancreatitis pathogenesis penicillin pharmacokinetics
    phenotype placebo pneumonia polymorphism prognosis prophylaxis prostate psoriasis pulmonary
    radiotherapy renal sarcoma schizophrenia sepsis statin stenosis stroke subcutaneous tachycardia
    thrombocytopenia thrombosis transplantation tuberculosis tumor vaccination ventricular
    """.split()
)
WORD = re.compile(r"[^\W\d_]+")
"""A run of letters."""


@dataclass(frozen=True)
class Measures:
    """What one tokenizer makes of the texts. A word is what stands between white space."""

    vocabulary: int
    """Tokens, the end of text among them."""
    tokens_per_word: float
    bytes_per_token: float
    characters_per_token: float
    whole_word_share: float
    """Of the runs of letters in the texts, each with a space before it: those that are one token."""
    changed_texts: int
    """Texts that decode(encode(text)) does not give back exactly."""
    terms: int
    """Medical terms looked at, each with a space before it."""
    terms_of_one_token: int
    tokens_per_term: float


class TokenizerComparison:
    """Measures several tokenizers on one stream of texts.

    Memory: the distinct words of the texts, and BATCH texts.
    """

    BATCH = 1000

    def __init__(self, tokenizers: Mapping[str, Tokenizer], terms: Sequence[str] = MEDICAL_TERMS):
        """`terms`: one or more, without white space around them."""
        self._tokenizers, self._terms = tokenizers, terms
        self._tokens: Counter[str] = Counter()
        self._changed: Counter[str] = Counter()
        self._runs: Counter = Counter()
        self.documents = self.words = self.characters = self.num_bytes = 0

    def read(self, texts: Iterable[str]) -> None:
        """Encode the texts with every tokenizer. Raises DataError: half of a surrogate pair."""
        texts = iter(texts)
        while batch := list(islice(texts, self.BATCH)):
            self.documents += len(batch)
            for text in batch:
                refuse_surrogates(text)
                self.words += len(text.split())
                self.characters += len(text)
                self.num_bytes += len(text.encode())
                self._runs.update(WORD.findall(text))
            for name, tokenizer in self._tokenizers.items():
                encoded = tokenizer.encode_batch(batch)
                self._tokens[name] += sum(map(len, encoded))
                self._changed[name] += sum(
                    tokenizer.decode(ids) != text for ids, text in zip(encoded, batch, strict=True)
                )

    def measures(self) -> dict[str, Measures]:
        """Name of the tokenizer -> its measures. Raises DataError: nothing but white space read."""
        if not self.words:
            raise DataError(
                "no word in the input", "tokens are counted by the word", "an input with text in it"
            )
        return {name: self._measure(name) for name in self._tokenizers}

    def _measure(self, name: str) -> Measures:
        tokenizer, tokens = self._tokenizers[name], self._tokens[name]
        lengths = _lengths(tokenizer, self._terms)
        runs = list(self._runs)
        whole = sum(
            self._runs[run]
            for run, length in zip(runs, _lengths(tokenizer, runs), strict=True)
            if length == 1
        )
        return Measures(
            vocabulary=tokenizer.vocab_size,
            tokens_per_word=tokens / self.words,
            bytes_per_token=self.num_bytes / tokens,
            characters_per_token=self.characters / tokens,
            whole_word_share=whole / max(1, self._runs.total()),
            changed_texts=self._changed[name],
            terms=len(self._terms),
            terms_of_one_token=lengths.count(1),
            tokens_per_term=sum(lengths) / len(lengths),
        )


def read_terms(path: str | Path) -> list[str]:
    """The terms of a file, one a line, UTF-8; empty lines are passed over. Raises DataError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise cannot_read(path, error) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error}", "it was named as a list of terms", "one term a line"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def _lengths(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Tokens of each word as it stands within a sentence: with a space before it."""
    return [len(ids) for ids in tokenizer.encode_batch([f" {word}" for word in words])]
