-- Of a workflow there may be a few among millions.
CREATE INDEX runs_workflow ON runs (workflow, id);
