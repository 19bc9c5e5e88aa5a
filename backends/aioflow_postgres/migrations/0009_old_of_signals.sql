-- Others do what these did.
DROP INDEX signals_taken;
DROP INDEX signals_addressed;
