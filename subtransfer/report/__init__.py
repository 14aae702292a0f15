"""Files and pages for people: results.csv and results.jsonl, the terminal's table, figures."""
