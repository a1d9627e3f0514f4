"""Times of training and inference, beside the original's way."""
