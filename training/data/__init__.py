"""Sources of problems: whatever form the questions come in, out come problem records."""
