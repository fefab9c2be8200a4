-- Work in progress: everything hot and mutable. Times are seconds since 1970 by the clock of the store.

CREATE TABLE IF NOT EXISTS runs (
    id     TEXT PRIMARY KEY,
    key    TEXT NOT NULL,            -- digest of what was asked: the same question finds its own unfinished run
    status TEXT NOT NULL CHECK (status IN ('running', 'done', 'budget', 'drained')),
    asked  TEXT NOT NULL,            -- JSON object
    units  TEXT NOT NULL             -- JSON list, in the order they were chosen
);
CREATE INDEX IF NOT EXISTS runs_by_key ON runs (key);

CREATE TABLE IF NOT EXISTS jobs (
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
CREATE INDEX IF NOT EXISTS jobs_open ON jobs (run, status);

-- Records on their way to the findings; AUTOINCREMENT, so that a seq is never used twice.
CREATE TABLE IF NOT EXISTS outbox (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    id    TEXT NOT NULL UNIQUE,
    kind  TEXT NOT NULL,             -- table of the findings
    body  TEXT NOT NULL              -- the record as JSON
);

CREATE TABLE IF NOT EXISTS cache (
    key  TEXT PRIMARY KEY,
    text TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS locks (
    name    TEXT PRIMARY KEY,
    holder  TEXT NOT NULL,
    expires REAL NOT NULL
);
