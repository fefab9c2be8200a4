"""Every constant behind a number, in one place; `VERSION` is stored with each score.

Raise VERSION when a constant or a definition changes: scores of different versions are never compared.
"""

VERSION = 5

# Documents, near copies and sides
SALT = "lamplighter-1"
SHINGLE = 4            # words in a shingle: with 30 % of its words deleted a copy still shares a third of these
COMMON_SHINGLE = 5     # a shingle in more documents than this (or than COMMON_SHARE of them) is boilerplate
COMMON_SHARE = 0.005
NEAR_SHARE = 0.2       # |G ∩ G'| / min(|G|, |G'|) from which two documents are near copies
NEAR_RUN = 50          # … or a common run of this many words
NEAR_ORDER = 0.6       # … or this share of the shorter one's words stands in the other in the same order, where
ORDER_WORDS = 1000     # the shorter has at most so many: few shingles of a short copy may survive by chance
ORDER_SIZES = 2.0      # … and the longer is at most so many times as long: in a long text much stands in order
SKETCH = 256           # smallest shingle hashes compared to find candidates
BIG_CLUSTER = 0.05     # a cluster with more than this share of all tokens goes to the explain side
EXPLAIN_BELOW, TUNE_BELOW = 50, 65   # of 100; the rest is the score side
SIDES = ("explain", "tune", "score")

# Labels
WINDOW = 64            # tokens the subject sees at once: the sink and 63 of text
PEAK_DOCUMENTS = 10    # P = mean over this many best explain documents of their maximum
FIRES = 0.5            # a unit fires where y ≥ FIRES × P
MIN_FIRINGS = 10       # on the score side, or every score is undefined
MIN_CLUSTERS = 8
STRATA = (0.8, 0.5, 0.25, 0.1)       # lower edges of y/P; below the last lies the rest
LOW_TOKENS = 8192      # tokens of a side, drawn by hash, in which y below FIRES × P is counted and kept
BANDS = ("top", "high", "mid", "boundary", "low", "random")

# Minimal examples and substitution
KEEP = 0.5             # a subset passes if it keeps this share of the whole text's reading
DRAWS = 8              # seeded fillers per resampled token
STRETCH = 12           # tokens of running text in a filler: fewer than LEAK_RUN, since the text may be the score side's
SHARE_SETS = 16        # random-order 1-minimal sets behind each token's share …
ORDER_SETS = 96        # … at most: so many as read this many sets, if each reads what the first search did
MOST_KEPT = 16         # tokens after which a search stops: what needs more is no example that a rule could be read from
WHOLE_TEXT = 16        # tokens up to which random orders start from the whole text, else from the suffix found
KILLS, UNSURE, RAISES = 0.25, 0.5, 1.25   # ratio < kills < unsure < keeps < raises

# Rules
MAX_CLAUSES = 4
MAX_ATOMS = 8

# Input scores
SAMPLE = 300           # predicted positions, and firings, judged at most
PREVALENCE = 0.01      # the common prevalence at which units are compared
BOOTSTRAP = 2000
CONFIDENCE = 0.95
SHIFTS = 20            # circular shifts of the labels within documents
FLOOR_UNITS = 5        # nearest units, and as many random ones, whose rules are tried on this unit
LEAK_RUN = 13          # a score window sharing this many tokens in a row with the evidence is dropped
NEAR_TEXTS = 20        # firing texts, of as many clusters, from which near misses are made
NEAR_WORDS = 6         # words, the firing one the last, that are changed in them one at a time
NEAR_SWAPS = 3         # words put in the place of each
ACCEPT = 0.5
FALSE_DISCOVERY = 0.05

# Scores by a judge, a language model that reads the sentence. They have a version of their own, since the other scores
# do not change with these.
JUDGED_VERSION = 1
SNIPPET = 32           # tokens of a text that a judge reads
SHORTEST = 8           # windows of fewer tokens are not shown
CONTEXT = 6            # tokens before the one that a text is drawn around, where its window has them
DETECTED = 20          # firing texts, and as many silent ones, in detection; firing and silent marks in fuzzing
MARKS = 3              # tokens marked in a text, at most
SIMULATED = 10         # firing texts, and as many silent ones, for whose tokens values are asked
GENERATED = 10         # texts that are to fire, and as many that are not, that a judge writes
HARD = 0.5             # share of the silent texts that are hard, where there are enough
READ_AHEAD = 2000      # windows read, at most, in search of the texts of one kind
QUALIFY_RULES = 20     # planted rules
QUALIFY_FALSE = 2      # false explanations of each, which are true of other rules
QUALIFY_TEXTS = 10     # texts of each label for each rule
QUALIFIED = 0.65       # lower end of the AUC from which a judge's scores of a kind count

# Output side
EQUIVALENCE_UNITS = 50         # units matched on write norm that set the width of "no effect"
EQUIVALENCE_QUANTILE = 0.95
PATCH_NOISE = 3.0              # |M_clean − M_corrupt| must exceed this many sd over repeated pairs
CONTROL_UNITS = 20
OUTPUT_SAMPLE = 100            # firings of the score side at which a claim about the output is tested
