-- Runs by their key alone, by time and by who started them, and the failed ones. Of the latter there may be a few among
-- a million: those of one workflow are told by the index itself.
CREATE INDEX runs_of_key ON runs (key, id) WHERE key IS NOT NULL;
CREATE INDEX runs_created ON runs (created_at, id);
CREATE INDEX runs_updated ON runs (updated_at, id);
CREATE INDEX runs_parent ON runs (parent_id, id) WHERE parent_id IS NOT NULL;
CREATE INDEX runs_failed ON runs (id, workflow) WHERE status = 'failed';
-- What has happened to an entity, whatever the event.
CREATE INDEX events_of_entity ON events (entity_id, id) WHERE entity_id IS NOT NULL;
-- What was taken, apart by how long it is remembered: each is read from its own earliest on.
DROP INDEX signals_taken;
CREATE INDEX signals_remembered ON signals (taken_at) WHERE taken_at IS NOT NULL AND signal_id IS NOT NULL;
CREATE INDEX signals_forgotten ON signals (taken_at) WHERE taken_at IS NOT NULL AND signal_id IS NULL;
-- A run's signals in the order of sending: the first few are found, however many there are.
DROP INDEX signals_addressed;
CREATE INDEX signals_addressed ON signals (run_id, name, sent_at, id) WHERE taken_at IS NULL AND run_id <> 0;
