-- What waits, what has come to a bad end, and what others have started.
CREATE INDEX runs_waiting ON runs (id) WHERE status = 'waiting';
CREATE INDEX runs_failed ON runs (status, id) WHERE status IN ('failed', 'cancelled');
CREATE INDEX runs_parent ON runs (parent_id, id) WHERE parent_id IS NOT NULL;
