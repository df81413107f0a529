"""The words that the rewriter of questions knows, by hand: closed classes whole, and of verbs and
adjectives those that medical questions use and that their ending does not give away.

Every list is one string of words in lower case. english.py reads words with them.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BE = _words("is are was were")
DO = _words("does do did")
HAVE = _words("has have had")
MODALS = _words("can could should will would may might must shall")
AUXILIARIES = BE | DO | HAVE | MODALS
WH_WORDS = _words("what which who whom whose where when why how")
PRONOUNS = _words("it they we you i he she there someone anyone everyone nobody one these those")
DETERMINERS = _words(
    "a an the this that these those my your our their his her its all both each every either neither "
    "any some no another such many most several few more fewer"
)
ARTICLES = _words("a an the our my your his her their its another")
PREPOSITIONS = _words(
    "of in on at by for with from to into onto after before during between among amongst against "
    "within without through throughout under over above below across along around behind beyond "
    "despite near off per since toward towards until upon via versus vs vs. regarding concerning than "
    "like unlike following undergoing receiving including inside outside amid about up down out as "
    "using involving"
)
CONJUNCTIONS = _words("and or but nor plus &")
RELATIVES = _words("who that which whose whom where when while if whether because although")
ADVERBS = _words(
    "not really still always also ever never seldom often sometimes usually only even just already actually "
    "truly indeed too very so quite rather more less most least as better worse well routinely both "
    "first much long enough again alone almost far further now soon today equally no necessarily"
)
LETTERED = _words(
    "hepatitis haemophilia hemophilia vitamin type influenza group protein factor toxin class grade phase "
    "cyclosporin cyclosporine ciclosporin apolipoprotein immunoglobulin amyloid interleukin coenzyme"
)
"""After these `A` is a name and no article."""
LY_NOT_ADVERBS = _words(
    "family early elderly daily weekly monthly yearly likely unlikely friendly costly deadly assembly "
    "anomaly supply reply apply rely imply multiply fly july italy butterfly lonely homely lovely "
    "timely orderly sickly kindly only poly comply belly jelly bodily silly ugly hourly quarterly"
)
MOSTLY_VERBS = _words(
    "cause increase decrease influence need help lead support change lower limit impact use alter share "
    "show result benefit matter"
)
"""Of VERB_OR_NOUN, those that a subject without article seldom ends with."""
AT_THE_END = _words(
    "act benefit change cost count decline differ drink drive exist fall help last look matter mean "
    "occur progress read relapse rise sleep smoke stay travel try work"
)
"""Verbs of VERB_OR_NOUN that need nothing behind them."""
DEGREES = _words("more less as too very so quite rather most least equally far much no")
QUANTITIES = _words("more less fewer much many enough sufficient adequate only always really too")
"""After `there is` these are negated by `not`: `no more deaths` says something else."""

VERBS = _words(
    "abolish absorb accelerate accept accompany account accumulate achieve acknowledge acquire "
    "activate adapt add adhere administer admit adopt advocate affect afflict afford aggravate "
    "aggregate agree alleviate allow alter ameliorate analyse analyze antagonise antagonize "
    "anticipate appeal appear apply appreciate argue arise arouse arrive ascertain ask assess "
    "assist associate assume attain attend attenuate attract augment avoid become beget begin "
    "behave believe belong bind bleed breastfeed bring broaden buffer build burn buy calculate "
    "cancel capture catalyse catalyze catch cease characterise characterize choose circulate "
    "clarify cleave co-express coexist collaborate collect colocalize come communicate compare "
    "compete complete complicate comply comprehend comprise concentrate conclude confer confirm "
    "conform confound consider consist constitute constrict consume contain continue contribute "
    "convert convey coordinate correct correlate correspond counteract create cure deal decide "
    "decrease deem defer define degrade delete deliver demonstrate denote depend deplete derive "
    "describe deserve destroy detect deter deteriorate determine develop deviate diagnose die "
    "differ differentiate dilate dimerize diminish disappear discontinue discourage discover "
    "discriminate discuss dispense display disrupt distinguish distribute divide downregulate "
    "drink drive eat educate elevate elicit eliminate elucidate emerge employ enable encode "
    "encompass encounter encourage endure engage enhance enrich enroll ensure enter equal "
    "eradicate escalate establish evaluate evoke evolve exacerbate examine exceed exclude exert "
    "exhibit exist expand expect explain exploit explore express extend facilitate fail fall favor "
    "favour feel fight find fit follow forget forgo form formulate foster fulfil fulfill further "
    "gain gather generate get give go grow guarantee happen harbor harbour harm heal hear help "
    "hinder hold hydrolyze identify ignore illustrate immunise immunize impair impede implement "
    "imply impose improve include incorporate increase incur indicate induce infect infer inflate "
    "inflict influence inform inhibit initiate inject injure innervate integrate intend intensify "
    "interact interfere interpret intervene introduce invade invent invest investigate involve "
    "isolate jeopardise jeopardize justify keep kill know lead learn leave lengthen lessen let lie "
    "limit listen live localise localize locate lose lower maintain make manifest mask master "
    "mature mean mediate meet mention metastasise metastasize methylate migrate mimic minimise "
    "minimize misdiagnose mitigate mobilise moderate modify modulate motivate multiply necessitate "
    "need neglect normalise normalize observe obtain obviate occur offer omit operate optimise "
    "optimize originate outcompete outgrow outlive outperform outweigh overcome overestimate "
    "overlap overlook participate pay penetrate perceive perform permit persist pertain "
    "phosphorylate portend possess potentiate precede precipitate preclude predict predispose "
    "prefer prepare prescribe present preserve prevail prevent proceed produce prolong promote "
    "prompt protect prove provide provoke quantify quit raise reach react realise realize reappear "
    "recapitulate receive recognise recognize recommend recover recruit recur redistribute reduce "
    "refer refine reflect refrain refuse regenerate regress regulate reinforce reject relate "
    "relieve rely remain remember remove render repeat replicate represent repress reproduce "
    "require resemble resist resolve respond restore restrict retain retard reveal reverse rise "
    "sacrifice satisfy save secrete see seek seem select sell send sensitise sensitize separate "
    "serve shorten shrink simplify simulate sit sleep slow smell smoke solve spare speak specify spend "
    "stabilise stabilize stand start stimulate stop strengthen substitute succeed suffer suffice "
    "suggest suit supplement support suppose suppress survive sustain synthesise synthesize tackle "
    "take teach tell tend terminate think threaten tolerate transfer transform translate transmit "
    "treat trust tune ubiquitinate uncover underestimate undergo underlie undermine understand "
    "undertake upregulate utilise utilize validate vanish vary verify weaken wear widen win "
    "withdraw withstand worsen write yield"
)
"""Base forms that are seldom anything else between a subject and its object."""

VERB_OR_NOUN = _words(
    "access act address advance advise aid aim alert amount answer approach attack attempt "
    "attribute award balance ban base bear benefit better bias blame block blunt boost break "
    "bridge burn bypass call calm care carry cause challenge change charge check claim clean close "
    "combat combine command comment complement complete compromise concern conduct conflict "
    "construct contact contract contrast control correct cost cover cross cure cut cycle damage "
    "debate decline decrease delay demand deposit desire direct discharge discount display do "
    "document double doubt draw drink drive drop dry ease escape estimate exchange exercise "
    "experience expose extract face factor fall favor fear feature feed figure fill find flare "
    "focus force form free function fund gain gauge guide halt handle harm head help highlight "
    "hope hurt impact import increase influence issue join joint label lack last lead license lie "
    "lift limit link load look lower manage mark market match matter mean measure merit mirror "
    "moderate monitor move murder need neglect note object offset outbreak outline overdose "
    "overlap own pace pass peak perfect place plan play pose practise press profit progress "
    "promise push question range rank read reason rebound record refill reform relapse release "
    "repair replace report request rescue result return review rise risk run screen search sense "
    "set shape share shift shock show sign signal size sleep slow smoke sound span speed spread "
    "stage start stay stop store stress stretch strike suit supplement supply support swallow "
    "switch target taste test touch trace track trade train transfer transport travel trend "
    "trigger trust try turn update uptake urge use value view visit voice wait wake walk want warm "
    "warrant wash waste watch weigh wonder work worry worsen yield"
)
"""Base forms that are nouns or adjectives as often; after VERBS these are the second choice."""

ADJECTIVES = _words(
    "airborne able abnormal absent acceptable accurate active actual acute addictive additive adequate "
    "adherent adjacent adverse advisable alike alive alone analogous ancient anxious apparent "
    "appropriate associated autoimmune autosomal available avascular avoidable aware bacterial bad "
    "beneficial benign best better big bigger bilateral bioequivalent blind capable carcinogenic "
    "cardiac cardiotoxic causal causative central certain cheap cheaper chronic clear clinical "
    "close closed cold comfortable common comparable compatible competent complete "
    "compliant complicated compulsory conclusive concomitant concurrent confident congenital "
    "consistent constant contagious contraindicated contributory convenient correct correlated "
    "cost-effective cost-saving costly critical crucial culpable curable current cytotoxic "
    "dangerous dead deadly deep deficient dependent depressed desirable detrimental devoid diabetic "
    "diagnostic different difficult dissatisfied distant distinct dominant druggable dry due "
    "earlier early easier easy effective efficacious efficient elderly eligible empty endemic "
    "enough epidemic equal equipotent equivalent essential ethical evidence-based evident "
    "excellent excessive expensive fair false familiar fast faster fatal favorable favourable "
    "feasible female fertile free frequent full genetic genotoxic good great greater happy hard "
    "harmful healthy heavier heavy helpful hepatic hepatotoxic hereditary heritable high high-risk "
    "higher highest homologous hot hypertensive ideal identical idiopathic ill illegal immune "
    "important impossible imprecise imprinted inaccurate inactive inadequate inappropriate "
    "incidental incompatible incomplete inconsistent incorrect incurable independent indicated "
    "indicative inducible ineffective inefficient infectious inferior infertile infrequent "
    "inherited insufficient intact interchangeable intermittent intolerant invalid invisible "
    "irrelevant irreversible isolated justifiable justified keen key large larger late latent "
    "later legal lesser lethal lifelong light lighter likely linked local long longer low low-risk "
    "lower lowest main major male malignant mandatory mature medical mental mild milder minor "
    "misleading moderate modest multiple mutagenic naive necessary needed negative nephrotoxic "
    "neurotoxic new non-inferior noninferior nonsignificant nontoxic normal obese obsolete obvious "
    "old older open optimal optional ototoxic outdated overused overweight painful patent "
    "pathogenic perfect peripheral permanent persistent physical polyadenylated poor poorer "
    "positive possible potent precise predictive predominant preferable pregnant premature present "
    "prevalent preventable preventative preventive primary probable prognostic prominent prone "
    "proportional protective proven prudent psychological pulmonary radiosensitive random rare "
    "ready real recent recessive recurrent redundant refractory related relevant reliable renal "
    "reproducible resistant responsible reversible rich richer right risky robust safe same "
    "satisfactory satisfied scarce secondary sensitive severe sex-specific short shorter sick "
    "significant similar simple single slow slower small smaller smart solitary sparse specific "
    "stable sterile stiff strong stronger subject suboptimal subsequent sufficient suggestive "
    "suitable superior supportive sure surgical susceptible sustainable synonymous systemic "
    "teratogenic tolerant toxic transient transmembrane treatable true ubiquitous unable "
    "unacceptable unavailable unaware uncertain unclear uncommon underused underway underweight "
    "undesirable unequal unethical unfair unfavorable unhappy unhealthy unilateral unimportant "
    "unique universal unknown unlikely unnecessary unreasonable unrelated unreliable unsafe "
    "unsatisfactory unstable unsuitable unwilling useful useless valid variable vascular viral "
    "visible vital voluntary vulnerable warm warranted weak weaker wet white wide willing wise "
    "worse worst worth worthwhile worthy wrong young younger zoonotic"
)
ADJECTIVE_ENDINGS = ("able", "ible", "ful", "less", "ous", "ive", "ical", "ic", "al", "ar")
NOUNS_LIKE_ADJECTIVES = _words(
    "hospital trial survival withdrawal removal approval renewal arousal referral signal animal "
    "individual interval metal mineral capital goal meal journal manual proposal festival canal criminal "
    "professional denial refusal disposal retrieval clinic topic antibiotic epidemic pandemic music "
    "logic traffic fabric basic cosmetic mechanic diuretic anesthetic anaesthetic analgesic narcotic "
    "prophylactic academic critic arsenic garlic plastic objective perspective alternative native "
    "additive relative operative initiative laxative sedative executive motive table cable vegetable "
    "variable disciple people example apple couple bacillus fungus mucous virus uterus thymus tetanus "
    "potential material radical chemical terminal differential residual neural molar scar sugar cellar "
    "bar car war year ear polar collar radar dollar seminar calendar pillar adjuvant renal "
    "appraisal rehearsal burial reversal dismissal betrayal portal total capital "
    "memorial petal pedal medal crystal fetal initial special electrical heal seal deal reveal"
)
POSTNOMINAL = _words(
    "resistant refractory naive positive negative eligible unable able older younger susceptible "
    "intolerant specific related dependent aware sensitive free present available ill pregnant similar"
)
"""Adjectives that follow their noun inside a subject: `bacteria resistant to X`, `adults older
than 65`."""

NOT_SAID_OF_THINGS = _words(
    "role benefit need place case time link association relationship relation connection correlation "
    "difference reason question matter story way look chance"
)
"""`X: a role in Y?` does not ask whether X is a role."""
STUDY_WORDS = _words(
    "analysis study studies evaluation comparison prevalence experience update review measurement "
    "assessment effect effects estimation diagnosis outcome outcomes results trends investigation "
    "association relation relationship impact influence follow-up survey report case"
)
"""A title about one of these is seldom what its `it` means."""
COMPLEMENTED = _words(
    "considered deemed thought positioned located made rendered kept regarded left"
)
"""Participles that take an adjective: `is considered | safe`."""
DESCRIBING = _words(
    "used given treated performed caused induced obtained enrolled admitted diagnosed born exposed "
    "measured based combined referred hospitalised hospitalized infected complicated taken fed derived "
    "managed operated controlled undertaken attending presenting suffering living approved detected"
)
"""Participles that describe a noun more often than they state something of it."""
ED_NOT_PARTICIPLES = _words(
    "need seed bed breed speed feed bleed red hundred weed indeed embed exceed proceed succeed sacred "
    "naked infrared"
)
ING_NOUNS = _words(
    "ageing aging anything balancing banding beginning being binding bleeding bonding "
    "breastfeeding breathing bring building caring clamping cleaning clustering coaching coding "
    "conditioning cooling coping counseling counselling coupling crossing cycling decision-making "
    "dieting dosing dressing drilling drinking eating editing ending engineering evening "
    "everything exchanging exercising fasting feeding functioning funding genotyping grading "
    "grafting healing housing imaging interviewing king labeling labelling learning lengthening "
    "lighting lightning mapping marketing matching meaning mixing modeling modelling monitoring "
    "morning nothing nursing offspring pacing parenting phasing planning positioning pricing "
    "processing profiling programming prolapse rating rationing reading reasoning recording "
    "remodeling ring running sampling scaling scanning scoring screening sequencing setting "
    "sharing shopping sibling signaling signalling sing sitting sleeping sling smoking snoring "
    "something splicing spring staging staining standing stenting strengthening stretching string "
    "swelling swimming tapering teaching testing thing thinking tightening timing tracking "
    "training tubing understanding vaping vomiting walking warning washing weaning well-being "
    "wellbeing whitening wing wording working writing"
)
IRREGULAR_PLURALS = _words(
    "children women men people data criteria bacteria mice feet teeth phenomena stimuli fungi nuclei "
    "loci they we you them us these those mitochondria spermatozoa larvae vertebrae fibulae others staff "
    "police youth ova strata schoolchildren grandchildren elderly physicians both few many others "
    "several most some all two three four five six ten protozoa bacilli cocci alveoli bronchi emboli "
    "thrombi foci viri sera septa genera ganglia midwives lives wives knives halves caregivers "
    "policemen salesmen firemen servicemen servicewomen laymen microbiota media poor homeless obese"
)
SINGULAR_IN_S = _words(
    "diabetes rabies herpes measles mumps rickets shingles aids series species lens pancreas ascites "
    "scabies caries biceps triceps quadriceps forceps bias atlas gas news plus its this thus was has does "
    "is perhaps always sometimes versus ketoacidosis kudos cannabis pelvis iris arthritis asbestos chaos "
    "canvas christmas texas kansas aegis access process stress illness less unless across toes' sars "
    "mers nervosa us basis crisis analysis hepatitis syphilis ibs aids pcos ms als hellp obs cns ards "
    "sids ros gis kras nras hras ras cvs ies trans cos abs les des vs pus hps"
)
IRREGULAR_VERBS = {
    line.split()[0]: tuple(line.split()[1:])
    for line in """
arise arose arisen|be was been|bear bore borne|become became become|begin began begun|bend bent bent
bind bound bound|bite bit bitten|bleed bled bled|break broke broken|breastfeed breastfed breastfed
bring brought brought|build built built|buy bought bought|catch caught caught|choose chose chosen
come came come|cost cost cost|cut cut cut|deal dealt dealt|do did done|draw drew drawn|drink drank drunk
drive drove driven|eat ate eaten|fall fell fallen|feed fed fed|feel felt felt|fight fought fought
find found found|forget forgot forgotten|forgo forwent forgone|get got got|give gave given|go went gone
grow grew grown|have had had|hear heard heard|hold held held|hurt hurt hurt|keep kept kept
know knew known|lead led led|learn learned learned|leave left left|let let let|lie lay lain
lose lost lost|make made made|mean meant meant|meet met met|outgrow outgrew outgrown
overcome overcame overcome|pay paid paid|put put put|quit quit quit|read read read|rise rose risen
run ran run|see saw seen|seek sought sought|sell sold sold|send sent sent|set set set|show showed shown
shrink shrank shrunk|sit sat sat|sleep slept slept|speak spoke spoken|spend spent spent
spread spread spread|stand stood stood|strike struck struck|swell swelled swollen|take took taken
teach taught taught|tell told told|think thought thought|undergo underwent undergone
understand understood understood|undertake undertook undertaken|wake woke woken|wear wore worn
win won won|withdraw withdrew withdrawn|withstand withstood withstood|write wrote written
beget begot begotten|drive drove driven|split split split|shed shed shed|stick stuck stuck|hit hit hit
""".replace("\n", "|")
    .strip("|")
    .split("|")
}
"""Base form -> (past, past participle)."""
DOUBLING = _words(
    "stop drop plan prefer occur refer permit admit omit transfer incur recur regret transmit commit "
    "submit control fit plug trap step wrap ban deter defer infer confer excel compel rebel"
)
"""Base forms that double their last letter before -ed."""
