CREATE INDEX runs_created ON runs (created_at, id);
