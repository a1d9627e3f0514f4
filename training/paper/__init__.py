"""The paper's published figures and released weights, and how to repeat them."""
