"""A look at a data set before anything is trained on it: what is there, what can't work, what is worth a thought."""
