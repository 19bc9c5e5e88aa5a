.PHONY: check test format

# .ci/run is the one definition of the checks.
check:
	.ci/run

test:
	.venv/bin/python -m pytest -q

format:
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
