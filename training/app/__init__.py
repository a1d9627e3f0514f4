"""The page that asks a model in the browser. `mmcot push --space` copies this room: its files run without the package.

`page.py` lays it out and serves it, `answering.py` answers, `rendering.py` makes HTML of an answer, `look.py` holds
style and script, `browsing.py` goes through a data set with predictions, `opening.py` finds what to show.
"""
