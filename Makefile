.PHONY: check test format

# What the checks are is written in .ci/run.
check:
	.ci/run

test:
	.venv/bin/python -m pytest -q

format:
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .
