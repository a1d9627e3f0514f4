"""From predictions to scores, tables and comparisons."""
