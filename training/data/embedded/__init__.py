"""Generated science questions with drawn pictures, from a seed."""
