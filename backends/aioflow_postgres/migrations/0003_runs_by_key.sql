-- What users ask for among millions of runs that have ended: from here on one script for each, so that others write in
-- between. Nothing in these changes while a run goes from step to step, so that its row is still updated in place:
-- updated_at has no index for that reason. First, runs by their key, and the live one that holds it.
CREATE INDEX runs_keyed ON runs (key, workflow, created_at, id) WHERE key IS NOT NULL;
CREATE INDEX runs_holding ON runs (key, workflow, created_at, id)
    WHERE key IS NOT NULL AND status IN ('running', 'waiting');
