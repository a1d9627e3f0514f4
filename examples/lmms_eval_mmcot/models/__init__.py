AVAILABLE_MODELS = {"mmcot_reasoner": "MMCoTReasoner"}  # what lmms-eval reads of a plug-in
