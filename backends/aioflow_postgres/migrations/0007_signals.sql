-- What was taken, apart by how long it is remembered: each is read from its own earliest on.
CREATE INDEX signals_remembered ON signals (taken_at) WHERE taken_at IS NOT NULL AND signal_id IS NOT NULL;
CREATE INDEX signals_forgotten ON signals (taken_at) WHERE taken_at IS NOT NULL AND signal_id IS NULL;
-- A run's signals in the order of sending: the first few are found, however many there are.
CREATE INDEX signals_of_run ON signals (run_id, name, sent_at, id) WHERE taken_at IS NULL AND run_id <> 0;
