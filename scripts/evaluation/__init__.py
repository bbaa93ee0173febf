"""The parts of scripts/evaluate.py, in the order of its data: methods, records, metrics, summary, pages."""
