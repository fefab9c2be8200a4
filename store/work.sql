-- Work in progress: everything hot and mutable. Times are seconds since 1970 by the clock of the store.
-- A new file gets every part below, an older one the parts that came after its version; a part is never changed.

-- version 1

CREATE TABLE runs (
    id     TEXT PRIMARY KEY,
    key    TEXT NOT NULL,            -- digest of what was asked: the same question finds its own unfinished run
    status TEXT NOT NULL CHECK (status IN ('running', 'done', 'budget', 'drained')),
    asked  TEXT NOT NULL,            -- JSON object
    units  TEXT NOT NULL             -- JSON list, in the order they were chosen
);
CREATE INDEX runs_by_key ON runs (key);

CREATE TABLE jobs (
    run      TEXT NOT NULL REFERENCES runs (id),
    unit     TEXT NOT NULL,          -- with its sign, as the command line writes it
    position INTEGER NOT NULL,       -- order of arrival: settles equal priorities
    priority REAL NOT NULL,          -- higher goes first
    status   TEXT NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'running', 'done', 'failed')),
    attempt  INTEGER NOT NULL DEFAULT 0,  -- tries made, the present one included; a released try is taken back
    token    INTEGER NOT NULL DEFAULT 0,  -- fence: raised by every claim and never lowered
    worker   TEXT,
    lease    REAL,                   -- seconds that each heartbeat adds
    expires  REAL,
    PRIMARY KEY (run, unit)
);
CREATE INDEX jobs_open ON jobs (run, status);

-- Records on their way to the findings; AUTOINCREMENT, so that a seq is never used twice.
CREATE TABLE outbox (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    id    TEXT NOT NULL UNIQUE,
    kind  TEXT NOT NULL,             -- table of the findings
    body  TEXT NOT NULL              -- the record as JSON
);

CREATE TABLE cache (
    key  TEXT PRIMARY KEY,
    text TEXT NOT NULL
);

CREATE TABLE locks (
    name    TEXT PRIMARY KEY,
    holder  TEXT NOT NULL,
    expires REAL NOT NULL
);

-- version 2

-- The ledger: one row for each HTTP request to a language model, and never one less. Kept for ever.
CREATE TABLE llm_calls (
    id            TEXT PRIMARY KEY,
    created_at    TEXT NOT NULL,
    run           TEXT,
    investigation TEXT,
    unit          TEXT,
    sign          INTEGER,
    provenance    TEXT NOT NULL,     -- JSON object
    purpose       TEXT NOT NULL,
    model         TEXT NOT NULL,
    endpoint      TEXT NOT NULL,
    outcome       TEXT NOT NULL,
    tokens_in     INTEGER,
    tokens_cached INTEGER,
    tokens_out    INTEGER,
    estimated     INTEGER NOT NULL,
    usd           REAL,              -- NULL where the cost is not known
    request       TEXT NOT NULL,
    seconds       REAL NOT NULL
);
CREATE INDEX llm_calls_by_run ON llm_calls (run);

-- version 3

-- What a request can have cost at most; NULL in rows from before, and usd_most for a model without a price.
ALTER TABLE llm_calls ADD COLUMN tokens_most INTEGER;
ALTER TABLE llm_calls ADD COLUMN usd_most REAL;

-- version 4

ALTER TABLE runs ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;   -- 1: no unit of it can be claimed
ALTER TABLE jobs ADD COLUMN rung TEXT;        -- how far up the ladder the unit came: induced, label or loop
ALTER TABLE jobs ADD COLUMN digest TEXT;      -- sha256 of what the unit's result depends on

-- Processes that have asked for units of a run: while it is paused, or between two units, they hold none.
CREATE TABLE workers (
    run    TEXT NOT NULL REFERENCES runs (id),
    worker TEXT NOT NULL,            -- place/pid/start, without the name of one of its threads
    seen   REAL NOT NULL,
    PRIMARY KEY (run, worker)
);

-- version 6

-- What waits for review, as of the last look at the findings. A look writes its rows in small parts under a number of
-- its own, and they count once it stands in review_looks. Who has which card is in review_slots alone.
CREATE TABLE review_items (
    item          TEXT NOT NULL,        -- the explanation: a hypothesis
    look          INTEGER NOT NULL,
    place         INTEGER NOT NULL,     -- lower goes first
    unit          TEXT NOT NULL,        -- without its sign
    sign          INTEGER,
    run           TEXT,
    investigation TEXT,
    author        TEXT,
    reasons       TEXT NOT NULL,        -- JSON list
    reviews       INTEGER NOT NULL,     -- rows of review_slots with status 'submitted'
    PRIMARY KEY (item, look)
);
CREATE INDEX review_items_by_place ON review_items (look, place);

CREATE TABLE review_looks (
    look     INTEGER NOT NULL,
    findings TEXT NOT NULL,             -- what the file of the findings looked like
    at       REAL NOT NULL
);

CREATE VIEW review_waiting AS SELECT * FROM review_items WHERE look = (SELECT look FROM review_looks);

-- One row for each explanation and person that it was given to; kept for ever, so that nobody gets one twice.
CREATE TABLE review_slots (
    item          TEXT NOT NULL,
    reviewer      TEXT NOT NULL,
    status        TEXT NOT NULL CHECK (status IN ('held', 'submitted', 'skipped')),
    since         REAL NOT NULL,        -- when the card was given
    expires       REAL,                 -- held: until then; skipped: not given to this person again before
    revealed      INTEGER NOT NULL DEFAULT 0,   -- 1: scores and what others said were shown
    card          TEXT,                 -- digest of what was shown last
    review        TEXT,                 -- the event that stands, with what it says:
    verdict       TEXT,
    tags          TEXT,                 -- JSON list
    seconds       REAL,
    edit          TEXT,                 -- the explanation that this person put in its place
    edit_run      TEXT,                 -- the run in which that is to be scored
    at            REAL,
    unit          TEXT NOT NULL,
    sign          INTEGER,
    run           TEXT,
    investigation TEXT,
    reasons       TEXT NOT NULL,
    PRIMARY KEY (item, reviewer)
);
CREATE INDEX review_slots_by_reviewer ON review_slots (reviewer, status);
CREATE INDEX review_slots_held ON review_slots (expires) WHERE status = 'held';

-- version 7

-- Starts of machines, and when each was by the clock as it stood when this file was first used since then.
CREATE TABLE boots (
    boot  TEXT PRIMARY KEY,
    began REAL NOT NULL
);

-- How much waits is counted for every card that is shown.
CREATE INDEX review_items_by_reviews ON review_items (look, reviews, item);
CREATE INDEX review_items_by_author ON review_items (look, author, item);
