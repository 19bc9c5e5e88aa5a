-- The store's identity, reserved ids, runs and their history.
CREATE TABLE store (uuid TEXT NOT NULL) STRICT;
INSERT INTO store SELECT lower(hex(randomblob(16)));

CREATE TABLE ids (kind TEXT PRIMARY KEY, next INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- The columns stand in the order of aioflow.model.Run.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    workflow TEXT NOT NULL,
    version TEXT NOT NULL,
    key TEXT,
    parent_id INTEGER,
    event_id TEXT,
    created_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    step TEXT NOT NULL,
    next_step TEXT,
    seq INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    owner INTEGER,
    visit INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    hops INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    marked INTEGER NOT NULL,
    waiting_for TEXT,
    wake_at INTEGER,
    progress REAL,
    data TEXT NOT NULL,
    error TEXT,
    traceback TEXT,
    updated_at INTEGER NOT NULL,
    ended_at INTEGER
) STRICT;

-- Indexes on what is live: they stay small however many runs have ended.
CREATE INDEX runs_running ON runs (owner, id) WHERE status = 'running';
CREATE INDEX runs_due ON runs (wake_at, id, seq) WHERE status = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX runs_blocked ON runs (id) WHERE waiting_for = 'blocked';
CREATE INDEX runs_key ON runs (workflow, key, created_at, id) WHERE key IS NOT NULL;

-- The columns stand in the order of aioflow.model.Transition.
CREATE TABLE history (
    run_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    step TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    kind TEXT NOT NULL,
    duration INTEGER NOT NULL,
    error TEXT,
    commit_id INTEGER NOT NULL,
    PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;
