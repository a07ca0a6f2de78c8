"""How a model behaves: what it says when clean clips are made worse, and when they are held against other prompts.

`degradations.py` makes clips worse, `folder.py` says which clips there are, `measure.py` scores them, `report.py` and
`pictures.py` say what came of it. Needs no rating: of a clip and a worse copy of it everybody knows which is better.
"""
