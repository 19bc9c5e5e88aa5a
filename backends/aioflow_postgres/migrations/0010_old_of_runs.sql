-- Another does what this one did.
DROP INDEX runs_key;
