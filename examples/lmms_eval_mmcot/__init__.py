"""A plug-in for lmms-eval: `LMMS_EVAL_PLUGINS=lmms_eval_mmcot`, with this folder's parent on PYTHONPATH."""
