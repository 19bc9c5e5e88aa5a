-- Events, what is planned because of them, who starts from them, and which of them runs have taken.

-- The columns stand in the order of aioflow.plans.EventRecord.
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    namespace TEXT NOT NULL,
    entity_id TEXT,
    entity_type TEXT,
    entity TEXT,
    at INTEGER NOT NULL,
    occurrence INTEGER NOT NULL,
    status TEXT NOT NULL,
    mail_id INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    occurred_at INTEGER
) STRICT;
CREATE INDEX events_entity ON events (name, entity_id, occurred_at);
CREATE INDEX events_status ON events (status, at);
CREATE INDEX events_pending ON events (name, at) WHERE status = 'pending';

-- Occurrences that others have replaced, by mail_id: one of them that is offered again is known.
CREATE TABLE replaced (mail_id INTEGER PRIMARY KEY) STRICT;

-- The columns stand in the order of aioflow.plans.Plan. Ids come from the table of ids: they never name another plan.
CREATE TABLE plans (
    id INTEGER PRIMARY KEY,
    due INTEGER NOT NULL,
    event INTEGER NOT NULL,
    occurrence INTEGER NOT NULL,
    workflow TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT,
    UNIQUE (event, occurrence, workflow, "offset")
) STRICT;
CREATE INDEX plans_due ON plans (due, id, attempts);
CREATE INDEX plans_put_off ON plans (id) WHERE error IS NOT NULL;
-- Blocked: aioflow.plans.BLOCKED.
CREATE INDEX plans_blocked ON plans (workflow, id) WHERE due = 4611686018427387904;

-- The columns stand in the order of aioflow.plans.Listener.
CREATE TABLE listeners (
    workflow TEXT NOT NULL,
    event_name TEXT NOT NULL,
    namespace TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    PRIMARY KEY (workflow, event_name, namespace, "offset")
) STRICT, WITHOUT ROWID;
CREATE INDEX listeners_event ON listeners (event_name);

-- Occurrences, by the ids of their copies in the mailbox, that a run has taken or was started by.
CREATE TABLE seen (
    run_id INTEGER NOT NULL,
    mail_id INTEGER NOT NULL,
    PRIMARY KEY (run_id, mail_id)
) STRICT, WITHOUT ROWID;

ALTER TABLE signals ADD COLUMN event INTEGER;
ALTER TABLE waits ADD COLUMN kind TEXT NOT NULL DEFAULT 'signal';
DROP INDEX waits_name;
CREATE INDEX waits_name ON waits (name, key, since, run_id, kind);

DROP TRIGGER runs_begin_to_wait;
CREATE TRIGGER runs_begin_to_wait AFTER INSERT ON runs WHEN NEW.arms IS NOT NULL
BEGIN
    INSERT INTO waits (run_id, arm, name, key, since, kind)
        SELECT NEW.id, key, json_extract(value, '$[1]'), json_extract(value, '$[2]'), NEW.updated_at,
            json_extract(value, '$[0]')
        FROM json_each(NEW.arms);
END;

-- A wait that has ended takes the copies of broadcasts and events with it that were made for it.
DROP TRIGGER runs_wait;
CREATE TRIGGER runs_wait AFTER UPDATE OF arms ON runs WHEN NEW.arms IS NOT OLD.arms
BEGIN
    DELETE FROM waits WHERE run_id = OLD.id;
    INSERT INTO waits (run_id, arm, name, key, since, kind)
        SELECT NEW.id, key, json_extract(value, '$[1]'), json_extract(value, '$[2]'), NEW.updated_at,
            json_extract(value, '$[0]')
        FROM json_each(NEW.arms);
    UPDATE signals SET expires_at = 0 WHERE run_id = OLD.id AND run_id <> 0 AND broadcast = 1 AND taken_at IS NULL;
END;

CREATE TRIGGER signals_event_taken AFTER UPDATE OF taken_at ON signals
WHEN NEW.event IS NOT NULL AND NEW.taken_at IS NOT NULL
BEGIN
    INSERT OR IGNORE INTO seen VALUES (NEW.run_id, NEW.id);
END;
