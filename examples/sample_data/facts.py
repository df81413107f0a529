"""The facts that the quickstart learns: 120 plain medical facts in 11 relations, as one table.

A fact is a row (subject, object, theme) of a relation. Relation and subject determine the object.
The templates hold {subject} and {object}; a composed sentence gets its capital letter afterwards,
so subjects and objects are written as they stand inside a sentence. A template must be
grammatical for every row: subjects are singular, and where an object may be plural ("the
kidneys") no verb depends on it.

Every relation asks its question in four wordings. Fact number i keeps wording i % 4 back: that
question is never trained on, and the answer to it shows whether the fact was learnt or only the
string of the question.

generate.py turns the table into files. A demonstration, not medical advice.
"""

from dataclasses import dataclass

WORDINGS = 4


@dataclass(frozen=True)
class Relation:
    """One kind of fact, the sentences that ask for it and state it, and its rows."""

    name: str
    category: str
    """MedQuAD's category of the subject: Disease, Drug or Other."""
    question_type: str
    """The nearest of MedQuAD's question types."""
    questions: tuple[str, str, str, str]
    answer: str
    statements: tuple[str, ...]
    """How abstracts say it, each worded unlike the others and unlike the answer."""
    rows: tuple[tuple[str, str, str], ...]
    """(subject, object, theme)"""


@dataclass(frozen=True)
class Fact:
    """One row of one relation, with its number in the whole table."""

    number: int
    relation: Relation
    subject: str
    object: str
    theme: str

    @property
    def held_out(self) -> int:
        """The wording that is kept back for evaluation."""
        return self.number % WORDINGS

    def compose(self, template: str, lead: str = "") -> str:
        text = lead + template.format(subject=self.subject, object=self.object)
        return text[0].upper() + text[1:]

    @property
    def questions(self) -> list[str]:
        return [self.compose(template) for template in self.relation.questions]

    @property
    def answer(self) -> str:
        return self.compose(self.relation.answer)


# What titles call a theme. Every abstract holds facts of one theme.
THEMES = {
    "infection": "infectious diseases",
    "nutrition": "nutrition",
    "hormones": "the hormones",
    "heart": "the heart, the blood and the kidneys",
    "lungs": "the lungs",
    "brain": "the brain and the nerves",
    "senses": "the eyes, the ears and the skin",
    "digestion": "the digestive system",
    "bones": "the bones and the joints",
    "cancer": "cancer",
    "genes": "genetic diseases",
}

# Names that PubMed prints with markup: species and genes in italics, the 12 of B12 lowered.
MARKUP = {
    "vitamin B12": "vitamin B<sub>12</sub>",
    **{
        name: f"<i>{name}</i>"
        for name in (
            "Plasmodium",
            "Mycobacterium tuberculosis",
            "Vibrio cholerae",
            "Yersinia pestis",
            "Clostridium tetani",
            "Treponema pallidum",
            "Borrelia burgdorferi",
            "Bordetella pertussis",
            "Trypanosoma cruzi",
            "CFTR",
            "FBN1",
            "HEXA",
        )
    },
}

RELATIONS = (
    Relation(
        name="cause of an infection",
        category="Disease",
        question_type="causes",
        questions=(
            "What causes {subject}?",
            "What is the cause of {subject}?",
            "Which germ causes {subject}?",
            "Which germ is responsible for {subject}?",
        ),
        answer="{subject} is caused by {object}.",
        statements=(
            "{object} is the germ that causes {subject}.",
            "an infection with {object} can lead to {subject}.",
            "the cause of {subject} is {object}.",
            "when {object} infects a person, {subject} can develop.",
        ),
        rows=(
            ("malaria", "the parasite Plasmodium", "infection"),
            ("tuberculosis", "the bacterium Mycobacterium tuberculosis", "infection"),
            ("cholera", "the bacterium Vibrio cholerae", "infection"),
            ("plague", "the bacterium Yersinia pestis", "infection"),
            ("tetanus", "the bacterium Clostridium tetani", "infection"),
            ("syphilis", "the bacterium Treponema pallidum", "infection"),
            ("Lyme disease", "the bacterium Borrelia burgdorferi", "infection"),
            ("whooping cough", "the bacterium Bordetella pertussis", "infection"),
            ("Chagas disease", "the parasite Trypanosoma cruzi", "infection"),
            ("chickenpox", "the varicella-zoster virus", "infection"),
            ("AIDS", "the human immunodeficiency virus", "infection"),
        ),
    ),
    Relation(
        name="effect of a lack",
        category="Other",
        question_type="complications",
        questions=(
            "What can a lack of {subject} cause?",
            "Which condition can result from a lack of {subject}?",
            "What happens when the body has too little {subject}?",
            "What does {subject} deficiency lead to?",
        ),
        answer="A lack of {subject} can cause {object}.",
        statements=(
            "{subject} deficiency can lead to {object}.",
            "{object} can result from a lack of {subject}.",
            "when the body has too little {subject}, {object} can follow.",
            "people who lack {subject} may have {object}.",
        ),
        rows=(
            ("vitamin A", "night blindness", "nutrition"),
            ("vitamin C", "scurvy", "nutrition"),
            ("vitamin D", "rickets", "nutrition"),
            ("vitamin B12", "megaloblastic anemia", "nutrition"),
            ("thiamine", "beriberi", "nutrition"),
            ("niacin", "pellagra", "nutrition"),
            ("iodine", "goiter", "nutrition"),
            ("iron", "anemia", "nutrition"),
            ("lactase", "lactose intolerance", "nutrition"),
            ("insulin", "diabetes", "hormones"),
            ("clotting factor VIII", "hemophilia A", "heart"),
        ),
    ),
    Relation(
        name="organ that makes a substance",
        category="Other",
        question_type="information",
        questions=(
            "Which organ makes {subject}?",
            "Where in the body is {subject} made?",
            "Which part of the body produces {subject}?",
            "What is the main source of {subject}?",
        ),
        answer="{subject} is made mainly by {object}.",
        statements=(
            "the body makes {subject} mainly in {object}.",
            "one task of {object} is to make {subject}.",
            "the production of {subject} takes place mainly in {object}.",
            "the main source of {subject} is {object}.",
        ),
        rows=(
            ("insulin", "the pancreas", "hormones"),
            ("glucagon", "the pancreas", "hormones"),
            ("thyroxine", "the thyroid gland", "hormones"),
            ("calcitonin", "the thyroid gland", "hormones"),
            ("cortisol", "the adrenal glands", "hormones"),
            ("adrenaline", "the adrenal glands", "hormones"),
            ("melatonin", "the pineal gland", "hormones"),
            ("growth hormone", "the pituitary gland", "hormones"),
            ("prolactin", "the pituitary gland", "hormones"),
            ("erythropoietin", "the kidneys", "heart"),
            ("bile", "the liver", "digestion"),
        ),
    ),
    Relation(
        name="use of a drug",
        category="Drug",
        question_type="indication",
        questions=(
            "What is {subject} used to treat?",
            "Which condition is treated with {subject}?",
            "What do doctors use {subject} for?",
            "Why is {subject} given to patients?",
        ),
        answer="{subject} is a drug used to treat {object}.",
        statements=(
            "{subject} is given to patients with {object}.",
            "doctors use {subject} to treat {object}.",
            "one drug for {object} is {subject}.",
            "the treatment of {object} may include {subject}.",
        ),
        rows=(
            ("metformin", "type 2 diabetes", "hormones"),
            ("levothyroxine", "hypothyroidism", "hormones"),
            ("allopurinol", "gout", "bones"),
            ("levodopa", "Parkinson disease", "brain"),
            ("albuterol", "asthma", "lungs"),
            ("donepezil", "Alzheimer disease", "brain"),
            ("lithium", "bipolar disorder", "brain"),
            ("isoniazid", "tuberculosis", "infection"),
            ("atorvastatin", "high cholesterol", "heart"),
            ("tamoxifen", "breast cancer", "cancer"),
            ("latanoprost", "glaucoma", "senses"),
        ),
    ),
    Relation(
        name="organ that a disease affects",
        category="Disease",
        question_type="information",
        questions=(
            "Which part of the body does {subject} affect?",
            "Where in the body does {subject} occur?",
            "What is affected by {subject}?",
            "Which organ does {subject} affect?",
        ),
        answer="{subject} is a condition that affects {object}.",
        statements=(
            "{subject} mainly affects {object}.",
            "doctors count {subject} among the diseases of {object}.",
            "people with {subject} have a disease of {object}.",
            "a patient with {subject} has a problem with {object}.",
        ),
        rows=(
            ("hepatitis", "the liver", "digestion"),
            ("cirrhosis", "the liver", "digestion"),
            ("gastritis", "the stomach", "digestion"),
            ("ulcerative colitis", "the large intestine", "digestion"),
            ("pneumonia", "the lungs", "lungs"),
            ("psoriasis", "the skin", "senses"),
            ("glaucoma", "the eyes", "senses"),
            ("osteoporosis", "the bones", "bones"),
            ("cardiomyopathy", "the heart", "heart"),
            ("nephritis", "the kidneys", "heart"),
            ("encephalitis", "the brain", "brain"),
        ),
    ),
    Relation(
        name="subject of a field of medicine",
        category="Other",
        question_type="information",
        questions=(
            "What does {subject} deal with?",
            "What is {subject} concerned with?",
            "What do doctors study in {subject}?",
            "What is the subject of {subject}?",
        ),
        answer="{subject} is the field of medicine that deals with {object}.",
        statements=(
            "in {subject}, doctors study {object}.",
            "{subject} is concerned with {object}.",
            "one field of medicine for {object} is {subject}.",
            "the study of {object} belongs to {subject}.",
        ),
        rows=(
            ("cardiology", "the heart", "heart"),
            ("nephrology", "the kidneys", "heart"),
            ("pulmonology", "the lungs", "lungs"),
            ("neurology", "the nervous system", "brain"),
            ("psychiatry", "mental disorders", "brain"),
            ("dermatology", "the skin", "senses"),
            ("ophthalmology", "the eyes", "senses"),
            ("gastroenterology", "the digestive system", "digestion"),
            ("orthopedics", "bones and joints", "bones"),
            ("endocrinology", "hormones", "hormones"),
            ("oncology", "cancer", "cancer"),
        ),
    ),
    Relation(
        name="what a test measures",
        category="Other",
        question_type="exams and tests",
        questions=(
            "What does {subject} measure?",
            "What is {subject} used to measure?",
            "What is the purpose of {subject}?",
            "Why do doctors use {subject}?",
        ),
        answer="{subject} is used to measure {object}.",
        statements=(
            "{subject} measures {object}.",
            "with {subject}, doctors can measure {object}.",
            "to measure {object}, doctors use {subject}.",
            "the purpose of {subject} is to measure {object}.",
        ),
        rows=(
            ("a thermometer", "body temperature", "infection"),
            ("a sphygmomanometer", "blood pressure", "heart"),
            ("an electrocardiogram", "the electrical activity of the heart", "heart"),
            ("an electroencephalogram", "the electrical activity of the brain", "brain"),
            ("a pulse oximeter", "the oxygen in the blood", "lungs"),
            ("a spirometer", "the flow of air from the lungs", "lungs"),
            ("a tonometer", "the pressure in the eye", "senses"),
            ("an audiometer", "hearing", "senses"),
            ("a glucose meter", "blood sugar", "hormones"),
            ("a lipid panel", "the fats in the blood", "heart"),
            ("a DXA scan", "bone density", "bones"),
        ),
    ),
    Relation(
        name="how an infection spreads",
        category="Disease",
        question_type="information",
        questions=(
            "How does {subject} spread?",
            "How do people catch {subject}?",
            "How does a person get {subject}?",
            "How is {subject} passed on to people?",
        ),
        answer="{subject} spreads mainly through {object}.",
        statements=(
            "people catch {subject} mainly through {object}.",
            "{subject} is passed on to people mainly through {object}.",
            "most people with {subject} caught it through {object}.",
            "{subject} reaches people mainly through {object}.",
        ),
        rows=(
            ("malaria", "the bites of mosquitoes", "infection"),
            ("dengue fever", "the bites of mosquitoes", "infection"),
            ("sleeping sickness", "the bites of tsetse flies", "infection"),
            ("Lyme disease", "the bites of ticks", "infection"),
            ("plague", "the bites of fleas", "infection"),
            ("rabies", "the bites of infected animals", "infection"),
            ("cholera", "contaminated water", "infection"),
            ("salmonellosis", "contaminated food", "infection"),
            ("hepatitis C", "infected blood", "infection"),
            ("measles", "the air", "infection"),
            ("influenza", "coughs and sneezes", "infection"),
        ),
    ),
    Relation(
        name="what prevents a disease",
        category="Disease",
        question_type="prevention",
        questions=(
            "What helps to prevent {subject}?",
            "How can the risk of {subject} be lowered?",
            "What protects against {subject}?",
            "What is a good way to prevent {subject}?",
        ),
        answer="The risk of {subject} is lowered by {object}.",
        statements=(
            "{object} can help to prevent {subject}.",
            "cases of {subject} can be prevented by {object}.",
            "people can lower the risk of {subject} with {object}.",
            "protection against {subject} is possible with {object}.",
        ),
        rows=(
            ("measles", "the MMR vaccine", "infection"),
            ("tuberculosis", "the BCG vaccine", "infection"),
            ("whooping cough", "the pertussis vaccine", "infection"),
            ("malaria", "mosquito nets", "infection"),
            ("cervical cancer", "the HPV vaccine", "cancer"),
            ("liver cancer", "the hepatitis B vaccine", "cancer"),
            ("skin cancer", "sun protection", "cancer"),
            ("lung cancer", "a life without smoking", "cancer"),
            ("tooth decay", "fluoride toothpaste", "nutrition"),
            ("goiter", "iodized salt", "nutrition"),
            ("spina bifida", "folic acid", "nutrition"),
        ),
    ),
    Relation(
        name="symptom of a disease",
        category="Disease",
        question_type="symptoms",
        questions=(
            "What is a common symptom of {subject}?",
            "What are the symptoms of {subject}?",
            "What do people with {subject} often have?",
            "Which complaint is typical of {subject}?",
        ),
        answer="People with {subject} often have {object}.",
        statements=(
            "{subject} often causes {object}.",
            "{object} is typical of {subject}.",
            "many patients with {subject} suffer from {object}.",
            "when a patient has {object}, {subject} is one possible cause.",
        ),
        rows=(
            ("asthma", "wheezing", "lungs"),
            ("hay fever", "a runny nose", "lungs"),
            ("a heart attack", "chest pain", "heart"),
            ("gout", "sudden joint pain", "bones"),
            ("Parkinson disease", "a tremor", "brain"),
            ("Alzheimer disease", "memory loss", "brain"),
            ("migraine", "a throbbing headache", "brain"),
            ("meningitis", "a stiff neck", "infection"),
            ("cholera", "watery diarrhea", "infection"),
            ("scabies", "severe itching", "senses"),
            ("a cataract", "blurred vision", "senses"),
        ),
    ),
    Relation(
        name="gene of a genetic disease",
        category="Disease",
        question_type="genetic changes",
        questions=(
            "Which gene is changed in {subject}?",
            "What are the genetic changes related to {subject}?",
            "Which gene is linked to {subject}?",
            "Changes in which gene cause {subject}?",
        ),
        answer="{subject} is caused by changes in {object}.",
        statements=(
            "changes in {object} cause {subject}.",
            "{object} is changed in people with {subject}.",
            "a genetic test for {subject} looks at {object}.",
            "the gene behind {subject} is {object}.",
        ),
        rows=(
            ("cystic fibrosis", "the CFTR gene", "genes"),
            ("sickle cell disease", "the HBB gene", "genes"),
            ("Huntington disease", "the HTT gene", "genes"),
            ("Marfan syndrome", "the FBN1 gene", "genes"),
            ("phenylketonuria", "the PAH gene", "genes"),
            ("fragile X syndrome", "the FMR1 gene", "genes"),
            ("achondroplasia", "the FGFR3 gene", "genes"),
            ("Wilson disease", "the ATP7B gene", "genes"),
            ("Tay-Sachs disease", "the HEXA gene", "genes"),
            ("hemophilia A", "the F8 gene", "genes"),
        ),
    ),
)

FACTS = tuple(
    Fact(number, relation, *row)
    for number, (relation, row) in enumerate(
        (relation, row) for relation in RELATIONS for row in relation.rows
    )
)
