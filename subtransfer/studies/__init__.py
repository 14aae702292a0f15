"""Many finished runs together: one table, conditions on its rows, pages and scaling studies."""
