"""What `bench.py` measures, one module a verb; `measure` holds the rules that all of them keep."""
