"""One small script a data set: `python -m data_scripts.NAME` gets it, `--make` makes a stand-in of the same layout.

`manifest.yaml` says where each comes from, what may be done with it and whom to cite. `standins` writes what is made,
with the truth beside it; `script` is the command line that all share.
"""
