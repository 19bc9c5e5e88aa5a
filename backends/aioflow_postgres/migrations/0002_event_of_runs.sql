-- Which runs an event has started.
CREATE INDEX runs_event ON runs (event_id, id) WHERE event_id IS NOT NULL;
