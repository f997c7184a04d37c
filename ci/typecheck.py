"""The checker behind `pytest --jaxtyping-packages=reglib,typecheck.check`: beartype, where an int is a float too."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
