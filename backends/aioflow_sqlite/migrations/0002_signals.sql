-- Waits for signals, the mailbox, and what resumed a run.
ALTER TABLE runs ADD COLUMN arms TEXT;
ALTER TABLE runs ADD COLUMN input TEXT;
ALTER TABLE runs ADD COLUMN deadline INTEGER;
ALTER TABLE runs ADD COLUMN failure TEXT;

-- What live runs wait for, one row an arm: kept by the triggers below, so that it follows from runs.arms alone.
CREATE TABLE waits (
    run_id INTEGER NOT NULL,
    arm INTEGER NOT NULL,
    name TEXT NOT NULL,
    key TEXT,
    since INTEGER NOT NULL,
    PRIMARY KEY (run_id, arm)
) STRICT, WITHOUT ROWID;
CREATE INDEX waits_name ON waits (name, key, since, run_id);

-- The first ten columns stand in the order of aioflow.model.Signal. A taken signal stays for a while as a tombstone.
CREATE TABLE signals (
    id INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    key TEXT,
    payload TEXT NOT NULL,
    message INTEGER NOT NULL,
    broadcast INTEGER NOT NULL,
    signal_id TEXT,
    sent_at INTEGER NOT NULL,
    expires_at INTEGER,
    taken_at INTEGER,
    taken_by INTEGER,
    UNIQUE (id, run_id)
) STRICT;
CREATE INDEX signals_addressed ON signals (run_id, name) WHERE taken_at IS NULL AND run_id <> 0;
CREATE INDEX signals_keyed ON signals (name, key, sent_at, id) WHERE taken_at IS NULL AND run_id = 0;
CREATE INDEX signals_expiring ON signals (expires_at) WHERE taken_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX signals_taken ON signals (taken_at) WHERE taken_at IS NOT NULL;
CREATE UNIQUE INDEX signals_sent ON signals (signal_id) WHERE signal_id IS NOT NULL;

CREATE TRIGGER runs_begin_to_wait AFTER INSERT ON runs WHEN NEW.arms IS NOT NULL
BEGIN
    INSERT INTO waits SELECT NEW.id, key, json_extract(value, '$[1]'), json_extract(value, '$[2]'), NEW.updated_at
        FROM json_each(NEW.arms);
END;

-- A wait that has ended takes the copies of broadcasts with it that were made for it.
CREATE TRIGGER runs_wait AFTER UPDATE OF arms ON runs WHEN NEW.arms IS NOT OLD.arms
BEGIN
    DELETE FROM waits WHERE run_id = OLD.id;
    INSERT INTO waits SELECT NEW.id, key, json_extract(value, '$[1]'), json_extract(value, '$[2]'), NEW.updated_at
        FROM json_each(NEW.arms);
    UPDATE signals SET expires_at = 0 WHERE run_id = OLD.id AND run_id <> 0 AND broadcast = 1 AND taken_at IS NULL;
END;

CREATE TRIGGER runs_end AFTER UPDATE OF status ON runs WHEN NEW.status NOT IN ('running', 'waiting')
BEGIN
    UPDATE signals SET expires_at = 0 WHERE run_id = NEW.id AND run_id <> 0 AND taken_at IS NULL;
END;
