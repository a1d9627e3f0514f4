"""Tasks of this plug-in; lmms-eval asks every plug-in for this folder."""
