-- Final facts, append-only: one table a record, one column a field, in the order of the dataclass.
-- No keys and no indexes: a record's id is made by us, and appending skips ids that are already here.
-- A new file gets every part below, an older one the parts that came after its version; a part is never changed,
-- but in how new files pack a column.

-- version 1

CREATE TABLE schema_version (version BIGINT, created_at TIMESTAMP);

CREATE TABLE models (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    name VARCHAR, architecture VARCHAR, layers BIGINT, vocabulary BIGINT, checks JSON, tools JSON
);

CREATE TABLE sweeps (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    digest VARCHAR, model VARCHAR, corpus VARCHAR, sites JSON, tokens JSON, documents JSON, overlap JSON,
    seconds DOUBLE
);

CREATE TABLE units (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    model VARCHAR, site VARCHAR, "index" BIGINT, peak DOUBLE, threshold DOUBLE, statistics JSON
);

CREATE TABLE exemplars (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    side VARCHAR, band VARCHAR, document VARCHAR, "position" BIGINT, activation DOUBLE, text VARCHAR,
    token VARCHAR
);

CREATE TABLE runs (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    key VARCHAR, asked JSON, status VARCHAR, units JSON, seconds DOUBLE
);

CREATE TABLE investigations (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    planner VARCHAR, status VARCHAR, steps BIGINT, cost JSON, seconds DOUBLE
);

CREATE TABLE evidence (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    tool VARCHAR, arguments JSON USING COMPRESSION zstd, ok BOOLEAN, summary VARCHAR, "rows" JSON USING COMPRESSION zstd, artifact VARCHAR, checks JSON,
    warnings JSON, cost JSON
);

CREATE TABLE hypotheses (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    author VARCHAR, sentence VARCHAR, rule JSON, rule_text VARCHAR, kept BOOLEAN, evidence JSON,
    tune_f1 DOUBLE
);

CREATE TABLE scores (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    hypothesis VARCHAR, metric VARCHAR, side VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE, n BIGINT,
    floors JSON, "references" JSON, details JSON, reason VARCHAR, judge VARCHAR
);

CREATE TABLE verdicts (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    hypothesis VARCHAR, verdict VARCHAR, reason VARCHAR, p DOUBLE, q DOUBLE
);

CREATE TABLE embeddings (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    hypothesis VARCHAR, model VARCHAR, vector FLOAT[]
);

CREATE TABLE failures (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    kind VARCHAR, message VARCHAR, step VARCHAR, attempt BIGINT
);

-- What stands for each unit and sign: the kept hypothesis of the newest investigation that has one and was
-- decided; where no investigation has one, the newest decision (abstained, or nothing to score). An
-- investigation whose newest verdict is `failed`, or that has none yet, changes nothing.
CREATE VIEW current_outcomes AS
WITH decided AS (
    SELECT * FROM verdicts
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), kept AS (
    SELECT * FROM hypotheses WHERE kept
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), outcomes AS (
    SELECT decided.unit, decided.sign, kept.id AS hypothesis, kept.sentence, kept.rule_text, decided.verdict,
           decided.run, decided.investigation, coalesce(kept.created_at, decided.created_at) AS created_at
    FROM decided
    LEFT JOIN kept ON kept.investigation = decided.investigation AND decided.verdict <> 'abstained'
    WHERE decided.verdict <> 'failed'
)
SELECT unit, sign, regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 1) AS model,
       regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 2) AS site,
       hypothesis, sentence, rule_text, verdict, run, investigation, created_at
FROM outcomes
QUALIFY row_number() OVER (
    PARTITION BY unit, sign ORDER BY hypothesis IS NULL, created_at DESC, investigation DESC) = 1;

-- The explanation of each unit and sign with its headline scores, all read on the score side. A score by rule
-- (no judge) goes before a judge's. `floor_f1` is the highest floor that was measured beside input_f1.
CREATE VIEW explanations AS
WITH latest AS (
    SELECT * FROM scores WHERE side = 'score'
    QUALIFY row_number() OVER (
        PARTITION BY hypothesis, metric ORDER BY judge IS NOT NULL, created_at DESC, id DESC) = 1
), planned AS (
    SELECT coalesce(investigation, id) AS investigation, planner FROM investigations
    QUALIFY row_number() OVER (
        PARTITION BY coalesce(investigation, id) ORDER BY created_at DESC, id DESC) = 1
)
SELECT o.unit, o.sign, o.sentence AS explanation, o.rule_text AS rule,
       CAST(NULL AS VARCHAR) AS output_explanation,
       f1.value AS input_f1, f1.low AS input_f1_low, f1.high AS input_f1_high,
       auprc.value AS input_auprc, pearson.value AS input_pearson,
       output_auc.value AS output_score, output_auc.low AS output_low, output_auc.high AS output_high,
       list_max(map_values(CAST(f1.floors AS MAP(VARCHAR, DOUBLE)))) AS floor_f1,
       o.verdict, planned.planner, o.run, o.investigation, o.created_at
FROM current_outcomes o
LEFT JOIN latest f1 ON f1.hypothesis = o.hypothesis AND f1.metric = 'f1'
LEFT JOIN latest auprc ON auprc.hypothesis = o.hypothesis AND auprc.metric = 'auprc'
LEFT JOIN latest pearson ON pearson.hypothesis = o.hypothesis AND pearson.metric = 'pearson'
LEFT JOIN latest output_auc ON output_auc.hypothesis = o.hypothesis AND output_auc.metric = 'output_auc'
LEFT JOIN planned ON planned.investigation = o.investigation;

-- One row a unit and sign: its newest statistics, its explanation if it has one (a failed unit has none), how
-- many tool calls are recorded about it and what they cost together.
CREATE VIEW unit_cards AS
WITH measured AS (
    SELECT unit, sign, model, site, "index", peak, threshold, statistics FROM units
    QUALIFY row_number() OVER (PARTITION BY unit, sign ORDER BY created_at DESC, id DESC) = 1
), spent AS (
    SELECT unit, sign, count(*) AS evidence,
           sum(CAST(cost->>'$.forward_rows' AS DOUBLE)) AS forward_rows,
           sum(CAST(cost->>'$.forward_tokens' AS DOUBLE)) AS forward_tokens,
           sum(CAST(cost->>'$.backward' AS DOUBLE)) AS backward,
           sum(CAST(cost->>'$.seconds' AS DOUBLE)) AS seconds
    FROM evidence WHERE unit IS NOT NULL GROUP BY unit, sign
), cards AS (
    SELECT * FROM measured FULL OUTER JOIN explanations USING (unit, sign)
)
SELECT cards.*, coalesce(spent.evidence, 0) AS evidence,
       spent.forward_rows, spent.forward_tokens, spent.backward, spent.seconds
FROM cards LEFT JOIN spent ON spent.unit = cards.unit AND spent.sign IS NOT DISTINCT FROM cards.sign;

-- version 2

-- A copy of the ledger in work.sqlite, which is the truth.
CREATE TABLE llm_calls (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    purpose VARCHAR, model VARCHAR, endpoint VARCHAR, outcome VARCHAR, tokens_in BIGINT, tokens_cached BIGINT,
    tokens_out BIGINT, estimated BOOLEAN, usd DOUBLE, request VARCHAR, seconds DOUBLE
);

-- version 3

-- As before, but evidence that was recalled cost nothing: the row that it repeats has the cost.
CREATE OR REPLACE VIEW unit_cards AS
WITH measured AS (
    SELECT unit, sign, model, site, "index", peak, threshold, statistics FROM units
    QUALIFY row_number() OVER (PARTITION BY unit, sign ORDER BY created_at DESC, id DESC) = 1
), paid AS (
    SELECT unit, sign, CASE WHEN json_exists(provenance, '$.recalled') THEN
           '{"forward_rows": 0, "forward_tokens": 0, "backward": 0, "seconds": 0}'::JSON ELSE cost END AS cost
    FROM evidence WHERE unit IS NOT NULL
), spent AS (
    SELECT unit, sign, count(*) AS evidence,
           sum(CAST(cost->>'$.forward_rows' AS DOUBLE)) AS forward_rows,
           sum(CAST(cost->>'$.forward_tokens' AS DOUBLE)) AS forward_tokens,
           sum(CAST(cost->>'$.backward' AS DOUBLE)) AS backward,
           sum(CAST(cost->>'$.seconds' AS DOUBLE)) AS seconds
    FROM paid GROUP BY unit, sign
), cards AS (
    SELECT * FROM measured FULL OUTER JOIN explanations USING (unit, sign)
)
SELECT cards.*, coalesce(spent.evidence, 0) AS evidence,
       spent.forward_rows, spent.forward_tokens, spent.backward, spent.seconds
FROM cards LEFT JOIN spent ON spent.unit = cards.unit AND spent.sign IS NOT DISTINCT FROM cards.sign;

-- version 4

-- What a unit pushes is a hypothesis of its own.
ALTER TABLE hypotheses ADD COLUMN side VARCHAR DEFAULT 'input';

CREATE OR REPLACE VIEW current_outcomes AS
WITH decided AS (
    SELECT * FROM verdicts
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), kept AS (
    SELECT * FROM hypotheses WHERE kept AND side = 'input'
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), outcomes AS (
    SELECT decided.unit, decided.sign, kept.id AS hypothesis, kept.sentence, kept.rule_text, decided.verdict,
           decided.run, decided.investigation, coalesce(kept.created_at, decided.created_at) AS created_at
    FROM decided
    LEFT JOIN kept ON kept.investigation = decided.investigation AND decided.verdict <> 'abstained'
    WHERE decided.verdict <> 'failed'
)
SELECT unit, sign, regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 1) AS model,
       regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 2) AS site,
       hypothesis, sentence, rule_text, verdict, run, investigation, created_at
FROM outcomes
QUALIFY row_number() OVER (
    PARTITION BY unit, sign ORDER BY hypothesis IS NULL, created_at DESC, investigation DESC) = 1;

CREATE OR REPLACE VIEW explanations AS
WITH latest AS (
    SELECT * FROM scores WHERE side = 'score'
    QUALIFY row_number() OVER (
        PARTITION BY hypothesis, metric ORDER BY judge IS NOT NULL, created_at DESC, id DESC) = 1
), pushing AS (
    SELECT * FROM hypotheses WHERE kept AND side = 'output'
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), planned AS (
    SELECT coalesce(investigation, id) AS investigation, planner FROM investigations
    QUALIFY row_number() OVER (
        PARTITION BY coalesce(investigation, id) ORDER BY created_at DESC, id DESC) = 1
)
SELECT o.unit, o.sign, o.sentence AS explanation, o.rule_text AS rule,
       pushing.sentence AS output_explanation,
       f1.value AS input_f1, f1.low AS input_f1_low, f1.high AS input_f1_high,
       auprc.value AS input_auprc, pearson.value AS input_pearson,
       output_auc.value AS output_score, output_auc.low AS output_low, output_auc.high AS output_high,
       list_max(map_values(CAST(f1.floors AS MAP(VARCHAR, DOUBLE)))) AS floor_f1,
       o.verdict, planned.planner, o.run, o.investigation, o.created_at
FROM current_outcomes o
LEFT JOIN latest f1 ON f1.hypothesis = o.hypothesis AND f1.metric = 'f1'
LEFT JOIN latest auprc ON auprc.hypothesis = o.hypothesis AND auprc.metric = 'auprc'
LEFT JOIN latest pearson ON pearson.hypothesis = o.hypothesis AND pearson.metric = 'pearson'
LEFT JOIN pushing ON pushing.investigation = o.investigation
LEFT JOIN latest output_auc ON output_auc.hypothesis = pushing.id AND output_auc.metric = 'output_auc'
LEFT JOIN planned ON planned.investigation = o.investigation;

-- version 5

-- What a request can have cost at most; null in rows from before, and usd_most for a model without a price.
ALTER TABLE llm_calls ADD COLUMN tokens_most BIGINT;
ALTER TABLE llm_calls ADD COLUMN usd_most DOUBLE;

-- version 6

-- What each experiment asked of the hypotheses that lived, and which it put out.
CREATE TABLE turns (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    question VARCHAR, "by" VARCHAR, tool VARCHAR, evidence VARCHAR, ok BOOLEAN, predictions JSON, outcome JSON,
    killed JSON
);

-- version 7

-- What the language model was asked when it gave no usable answer; null where a failure was another.
ALTER TABLE failures ADD COLUMN request VARCHAR;

-- version 8

-- What people said of explanations, one event a row; `undoes` names one that is taken back.
CREATE TABLE reviews (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    hypothesis VARCHAR, reviewer VARCHAR, verdict VARCHAR, tags JSON, seconds DOUBLE, card VARCHAR, client VARCHAR,
    blind BOOLEAN, reasons JSON, edit VARCHAR, undoes VARCHAR
);

-- The events that stand.
CREATE VIEW standing_reviews AS
SELECT * FROM reviews
WHERE verdict <> 'undo' AND id NOT IN (SELECT undoes FROM reviews WHERE undoes IS NOT NULL);

-- Every investigation that was decided, with what it submitted; and explanations written by people, whose verdict and
-- reason are null until they are scored. One that its author took back is left out. origin: the investigation whose
-- experiments stand behind the explanation, which for a person's is that of the one it was put in the place of.
CREATE VIEW outcomes AS
WITH taken_back AS (
    SELECT edit FROM reviews
    WHERE edit IS NOT NULL AND id IN (SELECT undoes FROM reviews WHERE undoes IS NOT NULL)
), decided AS (
    SELECT * FROM verdicts
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), kept AS (
    SELECT *, author LIKE 'person:%' AS edited FROM hypotheses
    WHERE kept AND side = 'input' AND id NOT IN (SELECT edit FROM taken_back)
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), withdrawn AS (
    SELECT investigation FROM hypotheses WHERE id IN (SELECT edit FROM taken_back)
)
SELECT decided.unit, decided.sign, kept.id AS hypothesis, kept.sentence, kept.rule_text, decided.verdict,
       decided.reason, decided.run, decided.investigation,
       coalesce(kept.created_at, decided.created_at) AS created_at, kept.author, coalesce(kept.edited, false) AS edited,
       coalesce(kept.provenance->>'$.origin', decided.investigation) AS origin
FROM decided
LEFT JOIN kept ON kept.investigation = decided.investigation AND decided.verdict <> 'abstained'
WHERE decided.verdict <> 'failed'
      AND NOT EXISTS (SELECT 1 FROM withdrawn WHERE withdrawn.investigation = decided.investigation)
UNION ALL
SELECT kept.unit, kept.sign, kept.id, kept.sentence, kept.rule_text, NULL, NULL, kept.run, kept.investigation,
       kept.created_at, kept.author, true, kept.provenance->>'$.origin'
FROM kept
WHERE kept.edited AND NOT EXISTS (
    SELECT 1 FROM decided WHERE decided.investigation = kept.investigation AND decided.verdict <> 'failed');

-- What stands for each unit and sign, as before; but what a person wrote goes before what a planner found.
CREATE OR REPLACE VIEW current_outcomes AS
SELECT unit, sign, regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 1) AS model,
       regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 2) AS site,
       hypothesis, sentence, rule_text, verdict, run, investigation, created_at, author, edited, origin
FROM outcomes
QUALIFY row_number() OVER (
    PARTITION BY unit, sign ORDER BY hypothesis IS NULL, edited DESC, created_at DESC, investigation DESC) = 1;

-- As before. Of a person's explanation the planner is the person, and what the unit pushes is as it was found.
CREATE OR REPLACE VIEW explanations AS
WITH latest AS (
    SELECT * FROM scores WHERE side = 'score'
    QUALIFY row_number() OVER (
        PARTITION BY hypothesis, metric ORDER BY judge IS NOT NULL, created_at DESC, id DESC) = 1
), pushing AS (
    SELECT * FROM hypotheses WHERE kept AND side = 'output'
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), planned AS (
    SELECT coalesce(investigation, id) AS investigation, planner FROM investigations
    QUALIFY row_number() OVER (
        PARTITION BY coalesce(investigation, id) ORDER BY created_at DESC, id DESC) = 1
)
SELECT o.unit, o.sign, o.sentence AS explanation, o.rule_text AS rule,
       pushing.sentence AS output_explanation,
       f1.value AS input_f1, f1.low AS input_f1_low, f1.high AS input_f1_high,
       auprc.value AS input_auprc, pearson.value AS input_pearson,
       output_auc.value AS output_score, output_auc.low AS output_low, output_auc.high AS output_high,
       list_max(map_values(CAST(f1.floors AS MAP(VARCHAR, DOUBLE)))) AS floor_f1,
       o.verdict, CASE WHEN o.edited THEN o.author ELSE planned.planner END AS planner,
       o.run, o.investigation, o.created_at
FROM current_outcomes o
LEFT JOIN latest f1 ON f1.hypothesis = o.hypothesis AND f1.metric = 'f1'
LEFT JOIN latest auprc ON auprc.hypothesis = o.hypothesis AND auprc.metric = 'auprc'
LEFT JOIN latest pearson ON pearson.hypothesis = o.hypothesis AND pearson.metric = 'pearson'
LEFT JOIN pushing ON pushing.investigation = o.origin
LEFT JOIN latest output_auc ON output_auc.hypothesis = pushing.id AND output_auc.metric = 'output_auc'
LEFT JOIN planned ON planned.investigation = o.investigation;

-- Which explanations wait for people, and why: the newest that a planner found for each unit and sign, and the newest
-- that a person wrote, once it is scored. The first stays beside the second, so that people's agreement can be told.
--   disagreement   F1 by rule and F1 of a judge that qualified lie on different sides of .5 with their whole intervals,
--                  or the verdict says that scores contradict each other
--   unclear        the verdict
--   straddles      the interval of the headline F1 has .5 in it
--   impact         without the unit CE changes by .1 nats a token or more where it fires, at either end of the interval
--   audit          a random 5 % of the units, whatever their verdict
-- Lanes take turns, so that none waits for another to end: disagreement, unclear, impact, audit. What is in the random
-- share is in its lane alone and stands in random order there, so that whoever stops on the way has seen a random
-- sample.
CREATE VIEW review_queue AS
WITH submitted AS (
    SELECT *, md5(unit || '/' || sign) AS draw FROM outcomes WHERE hypothesis IS NOT NULL AND verdict IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY unit, sign, edited ORDER BY created_at DESC, investigation DESC) = 1
), measured AS (
    SELECT hypothesis, metric, low, high FROM scores
    WHERE side = 'score' AND value IS NOT NULL AND low IS NOT NULL AND (
        (metric = 'f1' AND judge IS NULL)
        OR (metric IN ('detection', 'fuzzing') AND judge IS NOT NULL
            AND coalesce(details->>'$.qualified', 'false') = 'true'))
    QUALIFY row_number() OVER (PARTITION BY hypothesis, metric ORDER BY created_at DESC, id DESC) = 1
), f1 AS (
    SELECT hypothesis, max(low) >= 0.5 AND min(high) < 0.5 AS apart,
           coalesce(max(low) FILTER (metric = 'f1'), max(low) FILTER (metric = 'detection')) AS low,
           coalesce(max(high) FILTER (metric = 'f1'), max(high) FILTER (metric = 'detection')) AS high
    FROM measured GROUP BY hypothesis
), taken_out AS (
    SELECT investigation, (checks->>'$.effect') = 'shown' AND ("rows"->>'$[0].where') = 'firing'
           AND abs(CAST("rows"->>'$[0].low' AS DOUBLE)) >= 0.1
           AND abs(CAST("rows"->>'$[0].high' AS DOUBLE)) >= 0.1 AS strong
    FROM evidence WHERE tool = 'ablate' AND ok
    QUALIFY row_number() OVER (PARTITION BY investigation ORDER BY created_at DESC, id DESC) = 1
), weighed AS (
    SELECT s.hypothesis, s.unit, s.sign, s.run, s.investigation, s.author, s.created_at, s.edited, s.draw,
           coalesce(f1.apart, false) OR s.reason LIKE 'disagreement:%' AS disagreement,
           s.verdict = 'unclear' AS unclear, coalesce(f1.low < 0.5 AND f1.high >= 0.5, false) AS straddles,
           coalesce(taken_out.strong, false) AS impact, left(s.draw, 4) < '0ccd' AS audit
    FROM submitted s
    LEFT JOIN f1 ON f1.hypothesis = s.hypothesis
    LEFT JOIN taken_out ON taken_out.investigation = s.origin
), laned AS (
    SELECT *, CASE WHEN audit THEN 4 WHEN disagreement THEN 1 WHEN unclear OR straddles THEN 2 ELSE 3 END AS lane
    FROM weighed WHERE disagreement OR unclear OR straddles OR impact OR audit
)
SELECT hypothesis, unit, sign, run, investigation, author, created_at, edited,
       CASE WHEN disagreement THEN ['disagreement'] ELSE []::VARCHAR[] END
       || CASE WHEN unclear THEN ['unclear'] ELSE []::VARCHAR[] END
       || CASE WHEN straddles THEN ['straddles'] ELSE []::VARCHAR[] END
       || CASE WHEN impact THEN ['impact'] ELSE []::VARCHAR[] END
       || CASE WHEN audit THEN ['audit'] ELSE []::VARCHAR[] END AS reasons,
       lane, row_number() OVER (PARTITION BY lane ORDER BY draw, edited, hypothesis) AS turn
FROM laned;

-- What people made of the explanation that stands for each unit and sign. state: accepted or rejected, where all who
-- decided agree (an edit says that it is not right as it is), else disputed; unsure, where nobody decided; edited,
-- where a person wrote it and nobody has reviewed that yet; unreviewed.
CREATE VIEW review_states AS
WITH said AS (
    SELECT hypothesis, count(*) FILTER (verdict = 'accept') AS accepts, count(*) FILTER (verdict = 'reject') AS rejects,
           count(*) FILTER (verdict = 'edit') AS edits, count(*) FILTER (verdict = 'unsure') AS unsures,
           count(DISTINCT reviewer) AS reviewers
    FROM standing_reviews WHERE verdict <> 'skip' GROUP BY hypothesis
)
SELECT o.unit, o.sign, o.hypothesis,
       CASE WHEN accepts > 0 AND rejects + edits > 0 THEN 'disputed' WHEN accepts > 0 THEN 'accepted'
            WHEN rejects + edits > 0 THEN 'rejected' WHEN unsures > 0 THEN 'unsure' WHEN o.edited THEN 'edited'
            ELSE 'unreviewed' END AS state,
       coalesce(accepts, 0) AS accepts, coalesce(rejects, 0) AS rejects, coalesce(edits, 0) AS edits,
       coalesce(unsures, 0) AS unsures, coalesce(reviewers, 0) AS reviewers
FROM current_outcomes o LEFT JOIN said ON said.hypothesis = o.hypothesis
WHERE o.sentence IS NOT NULL;

-- version 9

-- What our rule says of explanations that other tools made. They are no outcome of an investigation, so that
-- `explanations` never shows them.
CREATE TABLE import_verdicts (
    id VARCHAR, created_at TIMESTAMP, run VARCHAR, investigation VARCHAR, unit VARCHAR, sign BIGINT,
    provenance JSON,
    hypothesis VARCHAR, verdict VARCHAR, reason VARCHAR, p DOUBLE, q DOUBLE
);

-- Explanations that other tools made: what their source claims of them, and what was measured here, which is null
-- where nothing was. `claimed` is a JSON list of {scorer, metric, value, n}.
CREATE VIEW imported AS
WITH claims AS (
    SELECT hypothesis, to_json(list({
               'scorer': details->>'$.scorer', 'metric': details->>'$.metric', 'value': value, 'n': n
           } ORDER BY created_at, id)) AS claimed
    FROM scores WHERE metric = 'claimed_score' GROUP BY hypothesis
), decided AS (
    SELECT * FROM import_verdicts
    QUALIFY row_number() OVER (PARTITION BY hypothesis ORDER BY created_at DESC, id DESC) = 1
), latest AS (
    SELECT * FROM scores WHERE side = 'score' AND judge IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY hypothesis, metric ORDER BY created_at DESC, id DESC) = 1
)
SELECT h.unit, h.sign, h.provenance->>'$.imported_from' AS source, h.author, h.sentence AS explanation,
       h.provenance->>'$.explain_text' AS explain_text, claims.claimed, detection.judge,
       CAST(detection.details->>'$.qualified' AS BOOLEAN) AS qualified,
       detection.value AS detection, detection.low AS detection_low, detection.high AS detection_high,
       list_max(map_values(CAST(detection.floors AS MAP(VARCHAR, DOUBLE)))) AS floor,
       fuzzing.value AS fuzzing, simulation.value AS simulation, generation.value AS generation,
       decided.verdict, decided.reason, decided.q, h.id AS hypothesis, h.created_at
FROM hypotheses h
LEFT JOIN claims ON claims.hypothesis = h.id
LEFT JOIN decided ON decided.hypothesis = h.id
LEFT JOIN latest detection ON detection.hypothesis = h.id AND detection.metric = 'detection'
LEFT JOIN latest fuzzing ON fuzzing.hypothesis = h.id AND fuzzing.metric = 'fuzzing'
LEFT JOIN latest simulation ON simulation.hypothesis = h.id AND simulation.metric = 'simulation'
LEFT JOIN latest generation ON generation.hypothesis = h.id AND generation.metric = 'generation'
WHERE json_exists(h.provenance, '$.imported_from');
