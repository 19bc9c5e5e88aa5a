-- What waits for a worker, in the order in which it is claimed.
CREATE INDEX runs_unowned ON runs (owner, created_at, id) WHERE status = 'running' AND owner IS NULL;
