"""Many questions through a trained model, quickly: the engine and predictions files."""
