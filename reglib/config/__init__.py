"""DeepReg's YAML files to networks, data sets and objectives; the only place where things have names in files.

    settings = config.load(["data.yaml", "train.yaml"])      # merged, checked
    training = config.build(settings)                        # network, data sets, objective, optimizer

`schema` says what a file may hold, `names` what its names mean, `deepreg` is DeepReg's own definition of a loss where
ours is another, `building` puts it together. Names come from a table, never from code in the file.
"""

from .building import Training, build
from .names import register
from .schema import Settings, as_yaml, load, merged

__all__ = ["Settings", "Training", "as_yaml", "build", "load", "merged", "register"]
