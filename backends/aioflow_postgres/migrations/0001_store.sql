-- The store's identity, reserved ids, workers, runs and their history, waits, the mailbox, events and plans.
-- Instants are microseconds since the epoch: exact, and the same as in every other store.
CREATE TABLE store (uuid TEXT NOT NULL, version INTEGER NOT NULL);
INSERT INTO store VALUES (gen_random_uuid()::text, 0);

CREATE TABLE ids (kind TEXT PRIMARY KEY, next BIGINT NOT NULL);

-- Who works, and until when its lease runs.
CREATE TABLE workers (id BIGINT PRIMARY KEY, until BIGINT NOT NULL);

-- The columns stand in the order of aioflow.model.Run. The Context is json, not jsonb, which would sort its keys and
-- make integers of large floats: it is read back as it was written. Room in the pages keeps most updates within them.
CREATE TABLE runs (
    id BIGINT PRIMARY KEY,
    workflow TEXT NOT NULL,
    version TEXT NOT NULL,
    key TEXT,
    parent_id BIGINT,
    event_id TEXT,
    created_at BIGINT NOT NULL,
    status TEXT NOT NULL,
    step TEXT NOT NULL,
    next_step TEXT,
    seq BIGINT NOT NULL,
    fence BIGINT NOT NULL,
    owner BIGINT,
    visit BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    hops BIGINT NOT NULL,
    crashes BIGINT NOT NULL,
    marked BIGINT NOT NULL,
    waiting_for TEXT,
    wake_at BIGINT,
    arms TEXT,
    input TEXT,
    deadline BIGINT,
    failure TEXT,
    progress DOUBLE PRECISION,
    data JSON NOT NULL,
    error TEXT,
    traceback TEXT,
    updated_at BIGINT NOT NULL,
    ended_at BIGINT
) WITH (fillfactor = 70);

-- Indexes on what is live: they stay small however many runs have ended.
CREATE INDEX runs_running ON runs (owner, id) WHERE status = 'running';
CREATE INDEX runs_due ON runs (wake_at, id) WHERE status = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX runs_blocked ON runs (id) WHERE waiting_for = 'blocked';
CREATE INDEX runs_key ON runs (workflow, key, created_at, id) WHERE key IS NOT NULL;

-- The columns stand in the order of aioflow.model.Transition.
CREATE TABLE history (
    run_id BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    step TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    kind TEXT NOT NULL,
    duration BIGINT NOT NULL,
    error TEXT,
    commit_id BIGINT NOT NULL,
    PRIMARY KEY (run_id, seq)
);

-- What live runs wait for, one row an arm: kept by the triggers below, so that it follows from runs.arms alone.
CREATE TABLE waits (
    run_id BIGINT NOT NULL,
    arm INTEGER NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    key TEXT,
    since BIGINT NOT NULL,
    PRIMARY KEY (run_id, arm)
);
CREATE INDEX waits_name ON waits (name, key, since, run_id);

-- The first columns stand in the order of aioflow.model.Signal. A taken signal stays for a while as a tombstone.
CREATE TABLE signals (
    id BIGINT NOT NULL,
    run_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    key TEXT,
    payload TEXT NOT NULL,
    message BIGINT NOT NULL,
    broadcast BIGINT NOT NULL,
    signal_id TEXT,
    sent_at BIGINT NOT NULL,
    expires_at BIGINT,
    event BIGINT,
    taken_at BIGINT,
    taken_by BIGINT,
    PRIMARY KEY (id, run_id)
);
CREATE INDEX signals_addressed ON signals (run_id, name) WHERE taken_at IS NULL AND run_id <> 0;
CREATE INDEX signals_keyed ON signals (name, key, sent_at, id) WHERE taken_at IS NULL AND run_id = 0;
CREATE INDEX signals_expiring ON signals (expires_at) WHERE taken_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX signals_taken ON signals (taken_at) WHERE taken_at IS NOT NULL;
CREATE UNIQUE INDEX signals_sent ON signals (signal_id) WHERE signal_id IS NOT NULL;

-- The columns stand in the order of aioflow.plans.EventRecord.
CREATE TABLE events (
    id BIGINT PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    namespace TEXT NOT NULL,
    entity_id TEXT,
    entity_type TEXT,
    entity TEXT,
    at BIGINT NOT NULL,
    occurrence BIGINT NOT NULL,
    status TEXT NOT NULL,
    mail_id BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    occurred_at BIGINT
);
CREATE INDEX events_entity ON events (name, entity_id, occurred_at);
CREATE INDEX events_pending ON events (name, at) WHERE status = 'pending';
CREATE INDEX events_status ON events (status, at);

-- Occurrences that others have replaced, by mail_id: one of them that is offered again is known.
CREATE TABLE replaced (mail_id BIGINT PRIMARY KEY);

-- The columns stand in the order of aioflow.plans.Plan. Ids come from the table of ids: they never name another plan.
CREATE TABLE plans (
    id BIGINT PRIMARY KEY,
    due BIGINT NOT NULL,
    event BIGINT NOT NULL,
    occurrence BIGINT NOT NULL,
    workflow TEXT NOT NULL,
    "offset" BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    error TEXT,
    UNIQUE (event, occurrence, workflow, "offset")
);
CREATE INDEX plans_due ON plans (due, id);
-- Blocked: aioflow.plans.BLOCKED.
CREATE INDEX plans_blocked ON plans (workflow, id) WHERE due = 4611686018427387904;

-- The columns stand in the order of aioflow.plans.Listener.
CREATE TABLE listeners (
    workflow TEXT NOT NULL,
    event_name TEXT NOT NULL,
    namespace TEXT NOT NULL,
    "offset" BIGINT NOT NULL,
    PRIMARY KEY (workflow, event_name, namespace, "offset")
);
CREATE INDEX listeners_event ON listeners (event_name);

-- Occurrences, by the ids of their copies in the mailbox, that a run has taken or was started by.
CREATE TABLE seen (
    run_id BIGINT NOT NULL,
    mail_id BIGINT NOT NULL,
    PRIMARY KEY (run_id, mail_id)
);

-- A wait that has ended takes the copies of broadcasts and events with it that were made for it. Whoever makes copies
-- holds the rows of the waits meanwhile, so that the statement after the deletion sees them.
CREATE FUNCTION runs_wait() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        DELETE FROM waits WHERE run_id = OLD.id;
        UPDATE signals SET expires_at = 0
            WHERE run_id = OLD.id AND run_id <> 0 AND broadcast = 1 AND taken_at IS NULL;
    END IF;
    IF NEW.arms IS NOT NULL THEN
        INSERT INTO waits (run_id, arm, kind, name, key, since)
            SELECT NEW.id, arm.place, arm.told ->> 0, arm.told ->> 1, arm.told ->> 2, NEW.updated_at
            FROM json_array_elements(NEW.arms::json) WITH ORDINALITY AS arm (told, place);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER runs_begin_to_wait AFTER INSERT ON runs FOR EACH ROW WHEN (NEW.arms IS NOT NULL)
    EXECUTE FUNCTION runs_wait();
CREATE TRIGGER runs_wait AFTER UPDATE ON runs FOR EACH ROW WHEN (NEW.arms IS DISTINCT FROM OLD.arms)
    EXECUTE FUNCTION runs_wait();

CREATE FUNCTION runs_end() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE signals SET expires_at = 0 WHERE run_id = NEW.id AND run_id <> 0 AND taken_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER runs_end AFTER UPDATE ON runs FOR EACH ROW
    WHEN (NEW.status IS DISTINCT FROM OLD.status AND NEW.status NOT IN ('running', 'waiting'))
    EXECUTE FUNCTION runs_end();
