"""From episodes to numbers: intervals and tests, one row an arm, and laws of scaling."""
