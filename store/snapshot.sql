-- What a snapshot holds beside the findings, for the pages: a schema of its own, which SHOW TABLES leaves out. The views
-- are tables when this runs.

CREATE SCHEMA pages;

-- One row a unit and sign that was looked at here, in the order of pages.
CREATE TABLE pages.units AS
WITH measured AS (
    SELECT unit, sign, peak, threshold FROM units
    QUALIFY row_number() OVER (PARTITION BY unit, sign ORDER BY created_at DESC, id DESC) = 1
), failed AS (
    SELECT unit, sign, count(*) AS failures FROM failures WHERE unit IS NOT NULL GROUP BY ALL
), by_hand AS (
    SELECT DISTINCT unit, sign FROM evidence WHERE investigation IS NULL AND unit IS NOT NULL AND tool <> 'import'
), known AS (
    SELECT unit, sign FROM explanations UNION SELECT unit, sign FROM measured UNION SELECT unit, sign FROM failed
    UNION SELECT unit, sign FROM by_hand
), parted AS (
    SELECT unit, sign, regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 1) AS model,
           regexp_extract(unit, '^(.*)/([^/]+)/([^/]+)$', 2) AS site,
           TRY_CAST(regexp_extract(unit, '/([^/]+)$', 1) AS BIGINT) AS "index"
    FROM known
), cards AS (
    SELECT k.*, TRY_CAST(regexp_extract(k.site, '^(\d+)-', 1) AS BIGINT) AS layer,
           CASE WHEN contains(k.site, ':') THEN 'feature' ELSE regexp_extract(k.site, '-(\w+)$', 1) END AS kind,
           e.* EXCLUDE (unit, sign, verdict), coalesce(e.verdict, CASE WHEN failures > 0 THEN 'failed' END) AS verdict,
           o.hypothesis, o.origin, r.state AS review, m.peak, m.threshold, coalesce(failures, 0) AS failures
    FROM parted k
    LEFT JOIN explanations e ON e.unit = k.unit AND e.sign IS NOT DISTINCT FROM k.sign
    LEFT JOIN current_outcomes o ON o.unit = k.unit AND o.sign IS NOT DISTINCT FROM k.sign
    LEFT JOIN review_states r ON r.unit = k.unit AND r.sign IS NOT DISTINCT FROM k.sign
    LEFT JOIN measured m ON m.unit = k.unit AND m.sign IS NOT DISTINCT FROM k.sign
    LEFT JOIN failed f ON f.unit = k.unit AND f.sign IS NOT DISTINCT FROM k.sign
)
SELECT row_number() OVER (ORDER BY model, layer, site, "index", sign DESC) - 1 AS place, * FROM cards ORDER BY place;

-- One row an investigation: the unit that it is of, how it ended and what it asked of language models; and of each table
-- where its rows lie, so that a page reads those and nothing else.
CREATE TABLE pages.investigations AS
WITH found AS (
    SELECT 'evidence' AS part, investigation, unit, sign, rowid AS number FROM evidence
    UNION ALL SELECT 'exemplars', investigation, unit, sign, rowid FROM exemplars
    UNION ALL SELECT 'turns', investigation, unit, sign, rowid FROM turns
    UNION ALL SELECT 'scores', investigation, unit, sign, rowid FROM scores
    UNION ALL SELECT 'hypotheses', investigation, unit, sign, rowid FROM hypotheses
    UNION ALL SELECT 'units', investigation, unit, sign, rowid FROM units
), lie AS (
    SELECT investigation, any_value(unit) AS unit, any_value(sign) AS sign,
           min(number) FILTER (part = 'evidence') AS evidence_first, max(number) FILTER (part = 'evidence') AS evidence_last,
           min(number) FILTER (part = 'exemplars') AS exemplars_first,
           max(number) FILTER (part = 'exemplars') AS exemplars_last,
           min(number) FILTER (part = 'turns') AS turns_first, max(number) FILTER (part = 'turns') AS turns_last,
           min(number) FILTER (part = 'scores') AS scores_first, max(number) FILTER (part = 'scores') AS scores_last,
           min(number) FILTER (part = 'hypotheses') AS hypotheses_first,
           max(number) FILTER (part = 'hypotheses') AS hypotheses_last,
           min(number) FILTER (part = 'units') AS units_first, max(number) FILTER (part = 'units') AS units_last
    FROM found WHERE investigation IS NOT NULL GROUP BY investigation
), ended AS (
    SELECT * FROM investigations
    QUALIFY row_number() OVER (PARTITION BY coalesce(investigation, id) ORDER BY created_at DESC, id DESC) = 1
), asked AS (
    SELECT investigation, count(*) AS calls,
           CAST(sum(coalesce(tokens_in, 0) + coalesce(tokens_out, 0)) AS BIGINT) AS tokens, sum(usd) AS usd,
           count(*) - count(usd) AS unpriced
    FROM llm_calls WHERE investigation IS NOT NULL GROUP BY investigation
)
SELECT p.place, l.* EXCLUDE (unit, sign), e.run, e.planner, e.status, e.created_at AS ended, e.seconds,
       coalesce(calls, 0) AS calls, coalesce(tokens, 0) AS tokens, coalesce(usd, 0) AS usd,
       coalesce(unpriced, 0) AS unpriced
FROM lie l
JOIN pages.units p ON p.unit = l.unit AND p.sign IS NOT DISTINCT FROM l.sign
LEFT JOIN ended e ON coalesce(e.investigation, e.id) = l.investigation
LEFT JOIN asked a ON a.investigation = l.investigation
ORDER BY p.place, ended;

CREATE TABLE pages.verdicts AS
SELECT p.place, t.id, t.created_at, t.run, t.investigation, t.verdict, t.reason, t.p, t.q
FROM verdicts t JOIN pages.units p ON p.unit = t.unit AND p.sign IS NOT DISTINCT FROM t.sign
ORDER BY p.place, t.created_at, t.id;

CREATE TABLE pages.failures AS
SELECT p.place, t.created_at, t.run, t.investigation, t.kind, left(t.message, 2000) AS message, t.step, t.attempt
FROM failures t JOIN pages.units p ON p.unit = t.unit AND p.sign IS NOT DISTINCT FROM t.sign
ORDER BY p.place, t.created_at, t.id;

-- What people had done with `tool` and `try`, and texts that were imported: where it lies in the table evidence.
CREATE TABLE pages.by_hand AS
SELECT p.place, t.rowid AS number
FROM evidence t JOIN pages.units p ON p.unit = t.unit AND p.sign IS NOT DISTINCT FROM t.sign
WHERE t.investigation IS NULL ORDER BY p.place, t.rowid;
