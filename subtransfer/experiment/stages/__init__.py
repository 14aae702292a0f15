"""What each kind of stage does, one module a kind: from input artefacts to one output folder.

Every function writes into the empty folder `out`, reads only finished artefacts, declares the
config fields that it reads, and takes JSON values beside these. `graph.py` says which stages there
are and how they hang together.
"""
